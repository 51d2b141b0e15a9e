// The LADSPA plug-in, mono and stereo: controls, and a live stream, with a thread of its own for hosts that run in real
// time.
#include <ladspa.h>

#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#include "udse.h"

namespace {

constexpr unsigned long piece = 1024;    // frames that are worked on at a time
constexpr double frame_seconds = 0.016;  // about a frame of a block
constexpr float most_attenuation = 60;   // dB; there, no limit
constexpr unsigned long mono_id = 5101, stereo_id = 5102;

// Controls first, then the inputs and the outputs of the channels
enum Port : unsigned long { attenuation, block_frames, own_thread, latency, controls };

struct Plugin {
  udse_prior* prior;
  udse_options options;
  udse_live* live = nullptr;
  std::vector<LADSPA_Data*> ports;
  std::vector<float> frames;

  Plugin(udse_prior* opened, unsigned long rate, unsigned channels)
      : prior(opened), options(udse_default_options()), ports(controls + 2 * channels), frames(piece * channels) {
    options.sample_rate = static_cast<uint32_t>(rate);
    options.channels = channels;
  }

  ~Plugin() {
    udse_close_live(live);
    udse_close_prior(prior);
  }

  float control(Port port, float least, float most, float otherwise) const {
    const LADSPA_Data* const value = ports[port];
    return value && std::isfinite(*value) ? std::clamp(*value, least, most) : otherwise;
  }

  double max_attenuation() const {
    const float limit = control(attenuation, 0, most_attenuation, most_attenuation);
    return limit >= most_attenuation ? 0 : std::max(limit, 1e-3f);  // 0 means no limit there
  }

  void open() {
    udse_close_live(live);
    options.block_frames = static_cast<uint32_t>(std::lround(control(block_frames, 2, 3, 2)));
    const double buffer = control(own_thread, 0, 1, 1) > 0 ? options.block_frames * frame_seconds : 0;  // one block
    options.buffer_frames = static_cast<uint32_t>(buffer * options.sample_rate);
    live = udse_open_live(prior, &options, nullptr);
  }

  void run(unsigned long count) {
    const unsigned channels = options.channels;
    LADSPA_Data *const *const inputs = ports.data() + controls, *const *const outputs = inputs + channels;
    if (live) udse_live_set_max_attenuation(live, max_attenuation());
    for (unsigned long done = 0; done < count;) {
      const unsigned long n = std::min(piece, count - done);
      for (unsigned c = 0; c < channels; ++c)
        for (unsigned long i = 0; i < n; ++i) frames[i * channels + c] = inputs[c][done + i];
      if (live) udse_process_live(live, frames.data(), frames.data(), static_cast<int64_t>(n));
      for (unsigned c = 0; c < channels; ++c)
        for (unsigned long i = 0; i < n; ++i) outputs[c][done + i] = frames[i * channels + c];
      done += n;
    }
    if (ports[latency]) *ports[latency] = live ? static_cast<float>(udse_live_latency(live)) : 0;
  }
};

template <unsigned channels>
LADSPA_Handle instantiate(const LADSPA_Descriptor*, unsigned long rate) {
  udse_prior* const prior = udse_embedded_prior(nullptr);
  if (!prior || rate < 8000 || rate > 1000000) {
    udse_close_prior(prior);
    return nullptr;
  }
  try {
    return new Plugin(prior, rate, channels);
  } catch (const std::bad_alloc&) {
    udse_close_prior(prior);
    return nullptr;
  }
}

constexpr LADSPA_PortDescriptor control_in = LADSPA_PORT_INPUT | LADSPA_PORT_CONTROL,
                                control_out = LADSPA_PORT_OUTPUT | LADSPA_PORT_CONTROL,
                                audio_in = LADSPA_PORT_INPUT | LADSPA_PORT_AUDIO,
                                audio_out = LADSPA_PORT_OUTPUT | LADSPA_PORT_AUDIO;
constexpr LADSPA_PortDescriptor mono_ports[] = {control_in, control_in, control_in, control_out, audio_in, audio_out};
constexpr LADSPA_PortDescriptor stereo_ports[] = {control_in, control_in, control_in, control_out,
                                                  audio_in,   audio_in,   audio_out,  audio_out};
constexpr const char* mono_names[] = {"Attenuation limit (dB)",
                                      "Block frames (when activated)",
                                      "Own thread (when activated)",
                                      "latency",
                                      "Input",
                                      "Output"};
constexpr const char* stereo_names[] = {"Attenuation limit (dB)",
                                        "Block frames (when activated)",
                                        "Own thread (when activated)",
                                        "latency",
                                        "Left input",
                                        "Right input",
                                        "Left output",
                                        "Right output"};
constexpr int bounded = LADSPA_HINT_BOUNDED_BELOW | LADSPA_HINT_BOUNDED_ABOVE;
constexpr LADSPA_PortRangeHint hints[] = {{bounded | LADSPA_HINT_DEFAULT_MAXIMUM, 0, most_attenuation},
                                          {bounded | LADSPA_HINT_INTEGER | LADSPA_HINT_DEFAULT_MINIMUM, 2, 3},
                                          {LADSPA_HINT_TOGGLED | LADSPA_HINT_DEFAULT_1, 0, 0},
                                          {0, 0, 0},
                                          {0, 0, 0},
                                          {0, 0, 0},
                                          {0, 0, 0},
                                          {0, 0, 0}};

template <unsigned channels>
LADSPA_Descriptor describe(unsigned long id, const char* label, const char* name, const LADSPA_PortDescriptor* ports,
                           const char* const* names) {
  LADSPA_Descriptor plugin{};
  plugin.UniqueID = id;
  plugin.Label = label;
  plugin.Properties = LADSPA_PROPERTY_HARD_RT_CAPABLE;
  plugin.Name = name;
  plugin.Maker = "udse-fast";
  plugin.Copyright = "Apache-2.0";
  plugin.PortCount = controls + 2 * channels;
  plugin.PortDescriptors = ports;
  plugin.PortNames = names;
  plugin.PortRangeHints = hints;
  plugin.instantiate = instantiate<channels>;
  plugin.connect_port = [](LADSPA_Handle handle, unsigned long port, LADSPA_Data* data) {
    static_cast<Plugin*>(handle)->ports[port] = data;
  };
  plugin.activate = [](LADSPA_Handle handle) { static_cast<Plugin*>(handle)->open(); };
  plugin.run = [](LADSPA_Handle handle, unsigned long count) { static_cast<Plugin*>(handle)->run(count); };
  plugin.cleanup = [](LADSPA_Handle handle) { delete static_cast<Plugin*>(handle); };
  return plugin;
}

}  // namespace

extern "C" UDSE_API const LADSPA_Descriptor* ladspa_descriptor(unsigned long index) {
  static const LADSPA_Descriptor plugins[] = {
      describe<1>(mono_id, "udse_mono", "Diffusion speech enhancement (mono)", mono_ports, mono_names),
      describe<2>(stereo_id, "udse_stereo", "Diffusion speech enhancement (stereo)", stereo_ports, stereo_names)};
  return index < 2 ? plugins + index : nullptr;
}
