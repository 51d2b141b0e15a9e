// (B, F, T) complex to (B, 2, F, T) float32 times `scale`.
#include "device.hpp"

namespace udse {
namespace gpu {

struct NetworkInput {
  const cfloat* state;
  Shape shape;
  PerFrame scale;
  float* out;

  UDSE_HD void operator()(int64_t i) const {
    const int64_t plane = shape.bins * shape.frames, at = i / plane * 2 * plane + i % plane;
    const Complex z = at_frame(scale, i % shape.frames) * load(state, i);
    out[at] = z.re;
    out[at + plane] = z.im;
  }
};

UDSE_EXPORT const char* udse_cuda_network_input(const cfloat* state, const Shape* shape, const PerFrame* scale, float* out,
                                                Stream stream) {
  return for_each(shape->samples * shape->bins * shape->frames, stream, NetworkInput{state, *shape, *scale, out});
}

}  // namespace gpu
}  // namespace udse
