// z of a key, (B, F, T).
#include "complex_normal.cuh"

namespace {

using namespace udse;

struct Draw {
  NoiseKey key;
  Shape shape;
  cfloat* out;
  UDSE_HD void operator()(std::int64_t i) const {
    const std::int64_t row = i / shape.frames;
    gpu::store(out, i, gpu::drawn(key, row / shape.bins, row % shape.bins, i % shape.frames));
  }
};

}  // namespace

UDSE_EXPORT const char* udse_cuda_complex_normal(const NoiseKey* key, const Shape* shape, cfloat* out, gpu::Stream stream) {
  return gpu::for_each(shape->samples * shape->bins * shape->frames, stream, Draw{*key, *shape, out});
}
