// Corrector and predictor of one reverse step.
#include "../step/step.cuh"

namespace udse {
namespace gpu {

struct Corrector : Unprepared {
  UDSE_HD static void update(const Step&, const Numbers& c, Bin&, Element& a, Element&) {
    a.s = a.s + c.langevin_step * a.S + c.langevin * a.z;
  }
};

struct Predictor : Unprepared {
  UDSE_HD static void update(const Step&, const Numbers& c, Bin&, Element& a, Element&) { a.s = predicted(c, a); }
};

UDSE_EXPORT const char* udse_cuda_corrector(const Step* step, Stream stream) { return sweep<Corrector>(step, stream); }
UDSE_EXPORT const char* udse_cuda_predictor(const Step* step, Stream stream) { return sweep<Predictor>(step, stream); }

}  // namespace gpu
}  // namespace udse
