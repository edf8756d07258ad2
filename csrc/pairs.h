// What every operation is told of its pairs, as a schema's tail holds it (cl_kernels/pairs.py,
// cl_kernels/calls.py). A new option is a field here and its lines below.
#pragma once
#include <optional>
#include <tuple>
#include <vector>

#include "stable.h"

namespace cl {

// Which pairs of query i and key j count.
struct Pairs {
  // Filters: the pair is kept if (query_ids[f][i] == key_ids[f][j]) == keep_same[f] for each f.
  std::vector<Tensor> query_ids;  // int64 [M] each
  std::vector<Tensor> key_ids;    // int64 [N] each
  std::vector<bool> keep_same;
  // And if above[i] < <query_i, key_j> < below[i].
  std::optional<Tensor> below, above;          // [M]
  std::optional<Tensor> query_bias, key_bias;  // [M], [N]; added to its logit
  // And if another model's similarity <query_guide_i, key_guide_j> is at most ceiling[i].
  std::optional<Tensor> query_guide, key_guide, ceiling;  // [M, G], [N, G], [M]
};

// In the schema's order: what Arguments take.
constexpr auto kPairsFields = std::make_tuple(
    &Pairs::query_ids, &Pairs::key_ids, &Pairs::keep_same, &Pairs::below, &Pairs::above,
    &Pairs::query_bias, &Pairs::key_bias, &Pairs::query_guide, &Pairs::key_guide, &Pairs::ceiling);

// A number for each query, or for each key.
struct PairsVector {
  const char* name;
  std::optional<Tensor> Pairs::* of;
  bool of_keys;
};
constexpr PairsVector kPairsVectors[] = {
    {"below", &Pairs::below, false},           {"above", &Pairs::above, false},
    {"query_bias", &Pairs::query_bias, false}, {"key_bias", &Pairs::key_bias, true},
    {"ceiling", &Pairs::ceiling, false},
};

constexpr size_t kMostFilters = 3;

struct Call {
  Pairs pairs;
  ScalarType compute_dtype;  // of the products; sums are of the accumulation type
  std::optional<double> logit_bound;
};

// Logits z_ij = scale * <query_i, key_j> + query_bias_i + key_bias_j, and -inf for a dropped pair.
// Without keys they are a Gram matrix's: query j is key j.
struct Logits {
  const Tensor& query;               // [M, D]
  const std::optional<Tensor>& key;  // [N, D]
  const Tensor& scale;               // []
  const Call& call;

  bool is_self() const { return !key; }
  const Tensor& keys() const { return key ? *key : query; }
};

}  // namespace cl
