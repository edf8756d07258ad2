// Typed functions as torch's dispatcher calls them: on a stack of values in the schema's order.
#pragma once
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "pairs.h"

namespace cl {

// As many results as the schema has.
using Results = std::vector<Tensor>;

// One result: a list.
struct TensorList {
  std::vector<Tensor> tensors;
};

// Takes arguments off the stack, each of them once: what is taken is owned.
class Arguments {
 public:
  Arguments(StableIValue* stack, uint64_t count) : next_(stack), end_(stack + count) {}

  template <class T>
  T take() {
    if constexpr (std::is_same_v<T, Pairs>) {
      Pairs pairs;
      std::apply([&](auto... field) { (take_into(pairs.*field), ...); }, kPairsFields);
      return pairs;
    } else if constexpr (std::is_same_v<T, Call>) {
      return {take<Pairs>(), take<ScalarType>(), take<std::optional<double>>()};
    } else {
      check_schema(next_ != end_);
      return torch::stable::detail::to<T>(*next_++);
    }
  }

  void check_all_taken() const { check_schema(next_ == end_); }

 private:
  template <class T>
  void take_into(T& x) {
    x = take<T>();
  }

  static void check_schema(bool fits) {
    STD_TORCH_CHECK(fits, "cl_kernels: the compiled library is not of this version; build it anew");
  }

  StableIValue *next_, *end_;
};

// Boxed<&f>::call is f for the dispatcher. Parameters are values or references to const; the result
// is a tensor, a TensorList, a tuple of these or Results.
template <auto FUNCTION>
struct Boxed;

template <class Result, class... Parameters, Result (*FUNCTION)(Parameters...)>
struct Boxed<FUNCTION> {
  static void call(StableIValue* stack, uint64_t argument_count, uint64_t) {
    Arguments in(stack, argument_count);
    // Braces: taken from left to right.
    const std::tuple<std::remove_cvref_t<Parameters>...> arguments{
        in.take<std::remove_cvref_t<Parameters>>()...};
    in.check_all_taken();
    put(stack, std::apply(FUNCTION, arguments));
  }

 private:
  static void put(StableIValue* stack, const Tensor& result) {
    *stack = torch::stable::detail::from(result);
  }

  static void put(StableIValue* stack, const TensorList& list) {
    *stack = torch::stable::detail::from(list.tensors);
  }

  static void put(StableIValue* stack, const Results& results) {
    for (const Tensor& result : results) put(stack++, result);
  }

  template <class... Each>
  static void put(StableIValue* stack, const std::tuple<Each...>& results) {
    std::apply([&](const Each&... each) { (put(stack++, each), ...); }, results);
  }
};

}  // namespace cl
