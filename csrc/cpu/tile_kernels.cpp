#include "tile_kernels.h"

#include <cstdlib>
#include <string_view>

namespace cl::cpu {

namespace isa {
extern const InstructionSet baseline;
#ifdef CL_X86_64
extern const InstructionSet avx2, avx512;
#endif
}  // namespace isa

namespace {

std::vector<const InstructionSet*> detect() {
  std::vector<const InstructionSet*> sets{&isa::baseline};
#ifdef CL_X86_64
  const char* forced = std::getenv("CL_KERNELS_ISA");
  const std::string_view limit = forced ? forced : "";
  if (limit == "baseline") return sets;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return sets;
  sets.push_back(&isa::avx2);
  if (limit != "avx2" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    sets.push_back(&isa::avx512);
#endif
  return sets;
}

}  // namespace

const std::vector<const InstructionSet*>& usable_instruction_sets() {
  static const std::vector<const InstructionSet*> sets = detect();
  return sets;
}

template <class T>
const TileKernels<T>& tile_kernels() {
  static const TileKernels<T>& best = usable_instruction_sets().back()->of<T>();
  return best;
}

template const TileKernels<float>& tile_kernels();
template const TileKernels<double>& tile_kernels();

}  // namespace cl::cpu
