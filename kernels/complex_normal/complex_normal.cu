// z of a key, (B, F, T).
#include "complex_normal.cuh"

namespace udse {
namespace gpu {

struct Draw {
  NoiseKey key;
  Shape shape;
  cfloat* out;
  UDSE_HD void operator()(int64_t i) const {
    const int64_t row = i / shape.frames;
    store(out, i, drawn(key, row / shape.bins, row % shape.bins, i % shape.frames));
  }
};

UDSE_EXPORT const char* udse_cuda_complex_normal(const NoiseKey* key, const Shape* shape, cfloat* out, Stream stream) {
  return for_each(shape->samples * shape->bins * shape->frames, stream, Draw{*key, *shape, out});
}

}  // namespace gpu
}  // namespace udse
