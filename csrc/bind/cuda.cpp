// The module warpmerge._cuda: devices, and kernels on addresses. Python keeps the memory alive and has checked shapes.
// The GIL is released around every call that can wait for a driver or a device.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "../cuda/grid.h"
#include "../cuda/launch.h"
#include "../cuda/runtime.h"

#if defined(WARPMERGE_CUDA_EMULATION)
#include "bindings.h"
#endif

namespace py = pybind11;
using namespace warpmerge;

namespace {

using cuda::Device;
using cuda::Event;
using cuda::Memory;
using cuda::Stream;
using Unlocked = py::call_guard<py::gil_scoped_release>;

Dtype dtype_of(int code) {
  if (code < 0 || code > 3) throw py::value_error("dtype code " + std::to_string(code) + " is unknown");
  return Dtype(code);
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

KernelLaunch make_launch(int64_t segments, int64_t chunks, int models, int outputs, const std::vector<int>& inputs,
                         int base, int out, bool fp64, int policy, bool aligned, uintptr_t segment_rows,
                         uintptr_t chunk_map, uintptr_t numbers, uintptr_t rules, uintptr_t words) {
  if (segments < 0 || chunks < 0 || models < 0 || outputs < 0) throw py::value_error("a launch has no negative sizes");
  if (inputs.size() != size_t(models)) throw py::value_error("a launch needs one dtype code per model");
  if (policy < 0 || policy > 2) throw py::value_error("policy " + std::to_string(policy) + " is unknown");
  KernelLaunch launch;
  launch.segments = segments;
  launch.chunks = chunks;
  launch.models = models;
  launch.outputs = outputs;
  for (const int code : inputs) launch.inputs.push_back(dtype_of(code));
  launch.base = base == -1 ? -1 : int(dtype_of(base));
  launch.out = dtype_of(out);
  launch.fp64 = fp64;
  launch.policy = Nonfinite(policy);
  launch.aligned = aligned;
  launch.segment_rows = at<const int64_t>(segment_rows);
  launch.chunk_map = at<const int32_t>(chunk_map);
  launch.numbers = at<const double>(numbers);
  launch.rules = at<const int64_t>(rules);
  launch.words = at<const int64_t>(words);
  return launch;
}

KernelProgram make_program(uintptr_t code, int instructions, int operands, int constants, int values, int rules,
                           int keys, int vectors, int ranks, uintptr_t file, int64_t file_bytes) {
  for (const int size : {instructions, operands, constants, values, rules, keys, vectors, ranks})
    if (size < 0) throw py::value_error("a program has no negative sizes");
  if (int64_t(operands) + constants >= kNoOperand)
    throw py::value_error("a program has at most " + std::to_string(kNoOperand) + " operands");
  return {at<const int16_t>(code), instructions, operands, constants, values, rules, keys, vectors, ranks,
          at<void>(file),          file_bytes};
}

// Freeing device memory waits for the device, also when it is the garbage collector that frees it.
struct DeleteUnlocked {
  void operator()(Memory* memory) const {
    std::optional<py::gil_scoped_release> release;
    if (PyGILState_Check()) release.emplace();
    delete memory;
  }
};

std::shared_ptr<Memory> allocate(const Device& device, int64_t bytes, Memory::Where where) {
  if (bytes < 0) throw std::invalid_argument("a size in bytes cannot be negative");
  return {new Memory(device.index(), size_t(bytes), where), DeleteUnlocked()};
}

// Queues the kernels that `queue` launches.
template <class Queue>
void launch_on(Device& device, const Stream& stream, Queue&& queue) {
  if (stream.device() != device.index())
    throw py::value_error("the stream belongs to GPU " + std::to_string(stream.device()) + ", not to GPU " +
                          std::to_string(device.index()));
  py::gil_scoped_release release;
  device.make_current();
  const int64_t before = launches;
  queue(stream.handle());
  device.count_launches(launches - before);
}

void bind_runtime(py::module_& m) {
  py::class_<Memory, std::shared_ptr<Memory>>(m, "Memory", py::module_local())
      .def_property_readonly("address", &Memory::address)
      .def_property_readonly("nbytes", &Memory::bytes)
      .def("free", &Memory::free, Unlocked());

  py::class_<Event, std::shared_ptr<Event>>(m, "Event", py::module_local())
      .def("done", &Event::done, Unlocked())
      .def("synchronize", &Event::synchronize, Unlocked());

  const auto copy = [](cudaMemcpyKind kind) {
    return [kind](const Stream& stream, uintptr_t to, uintptr_t from, size_t bytes) {
      stream.copy(to, from, bytes, kind);
    };
  };
  py::class_<Stream, std::shared_ptr<Stream>>(m, "Stream", py::module_local())
      .def_property_readonly("handle",
                             [](const Stream& stream) { return reinterpret_cast<uintptr_t>(stream.handle()); })
      .def("copy_in", copy(cudaMemcpyHostToDevice), py::arg("dst"), py::arg("src"), py::arg("nbytes"), Unlocked())
      .def("copy_out", copy(cudaMemcpyDeviceToHost), py::arg("dst"), py::arg("src"), py::arg("nbytes"), Unlocked())
      .def("copy", copy(cudaMemcpyDeviceToDevice), py::arg("dst"), py::arg("src"), py::arg("nbytes"), Unlocked())
      .def("zero", &Stream::zero, py::arg("dst"), py::arg("nbytes"), Unlocked())
      .def("record", &Stream::record, Unlocked())
      .def("wait", &Stream::wait, py::arg("event"), Unlocked())
      .def("synchronize", &Stream::synchronize, Unlocked());
}

void bind_kernels(py::class_<Device, std::shared_ptr<Device>>& device) {
  const auto stream = py::arg("stream");
  const auto launch = py::arg("launch");
  const auto nonfinite = py::arg("nonfinite");
  const auto partials = py::arg("partials");
  const auto state = py::arg("state");
  const auto code = py::arg("code");
  device
      .def(
          "weighted_sum",
          [](Device& d, const Stream& s, const KernelLaunch& launch, bool agree, uintptr_t nonfinite) {
            launch_on(d, s, [&](cudaStream_t t) { weighted_sum(t, launch, agree, at<int64_t>(nonfinite)); });
          },
          stream, launch, py::arg("agree"), nonfinite)
      .def(
          "elect_and_sum",
          [](Device& d, const Stream& s, const KernelLaunch& launch, bool elect, uintptr_t nonfinite) {
            launch_on(d, s, [&](cudaStream_t t) { elect_and_sum(t, launch, elect, at<int64_t>(nonfinite)); });
          },
          stream, launch, py::arg("elect"), nonfinite)
      .def(
          "formula",
          [](Device& d, const Stream& s, const KernelLaunch& launch, const KernelProgram& code, bool combine, int agree,
             uintptr_t nonfinite) {
            launch_on(d, s, [&](cudaStream_t t) { formula(t, launch, code, combine, agree, at<int64_t>(nonfinite)); });
          },
          stream, launch, code, py::arg("combine"), py::arg("agree"), nonfinite)
      .def(
          "ranks",
          [](Device& d, const Stream& s, const KernelLaunch& launch, const KernelProgram& code, int input, int ordinal,
             int64_t longest) {
            launch_on(d, s, [&](cudaStream_t t) { ranks(t, launch, code, input, ordinal, longest); });
          },
          stream, launch, code, py::arg("input"), py::arg("ordinal"), py::arg("longest"))
      .def(
          "row_values",
          [](Device& d, const Stream& s, const KernelLaunch& launch, bool largest, uintptr_t partials) {
            launch_on(d, s, [&](cudaStream_t t) { row_values(t, launch, largest, at<double>(partials)); });
          },
          stream, launch, py::arg("largest"), partials)
      .def(
          "row_totals",
          [](Device& d, const Stream& s, uintptr_t partials, uintptr_t ranges, int64_t tensors, int64_t rows,
             int models, bool largest, uintptr_t result) {
            launch_on(d, s, [&](cudaStream_t t) {
              row_totals(t, at<double>(partials), at<const int64_t>(ranges), tensors, rows, models, largest,
                         at<double>(result));
            });
          },
          stream, partials, py::arg("ranges"), py::arg("tensors"), py::arg("rows"), py::arg("models"),
          py::arg("largest"), py::arg("result"))
      .def(
          "row_products",
          [](Device& d, const Stream& s, const KernelLaunch& launch, uintptr_t value_pairs, int number, int sums,
             uintptr_t partials) {
            launch_on(d, s, [&](cudaStream_t t) {
              row_products(t, launch, at<const int64_t>(value_pairs), number, sums, at<double>(partials));
            });
          },
          stream, launch, py::arg("value_pairs"), py::arg("number"), py::arg("sums"), partials)
      .def(
          "column_terms",
          [](Device& d, const Stream& s, const KernelLaunch& launch, uintptr_t value_pairs, int number, int sums,
             int term, uintptr_t partials) {
            launch_on(d, s, [&](cudaStream_t t) {
              column_terms(t, launch, at<const int64_t>(value_pairs), number, sums, term, at<double>(partials));
            });
          },
          stream, launch, py::arg("value_pairs"), py::arg("number"), py::arg("sums"), py::arg("term"), partials)
      .def(
          "column_totals",
          [](Device& d, const Stream& s, uintptr_t partials, uintptr_t ranges, int64_t tensors, int64_t sums,
             bool largest, uintptr_t result) {
            launch_on(d, s, [&](cudaStream_t t) {
              column_totals(t, at<double>(partials), at<const int64_t>(ranges), tensors, sums, largest,
                            at<double>(result));
            });
          },
          stream, partials, py::arg("ranges"), py::arg("tensors"), py::arg("sums"), py::arg("largest"),
          py::arg("result"))
      .def(
          "tensor_sums",
          [](Device& d, const Stream& s, const KernelLaunch& launch, uintptr_t partials, uintptr_t nonfinite) {
            launch_on(d, s,
                      [&](cudaStream_t t) { tensor_sums(t, launch, at<double>(partials), at<int64_t>(nonfinite)); });
          },
          stream, launch, partials, nonfinite)
      .def(
          "kept_sums",
          [](Device& d, const Stream& s, const KernelLaunch& launch, uintptr_t partials, uintptr_t nonfinite) {
            launch_on(d, s,
                      [&](cudaStream_t t) { kept_sums(t, launch, at<double>(partials), at<int64_t>(nonfinite)); });
          },
          stream, launch, partials, nonfinite)
      .def(
          "gram",
          [](Device& d, const Stream& s, const KernelLaunch& launch, uintptr_t partials, uintptr_t nonfinite) {
            launch_on(d, s, [&](cudaStream_t t) { gram(t, launch, at<double>(partials), at<int64_t>(nonfinite)); });
          },
          stream, launch, partials, nonfinite)
      .def(
          "reduce_blocks",
          [](Device& d, const Stream& s, uintptr_t partials, uintptr_t ranges, int64_t tensors, int width,
             uintptr_t result) {
            launch_on(d, s, [&](cudaStream_t t) {
              reduce_blocks(t, at<double>(partials), at<const int64_t>(ranges), tensors, width, at<double>(result));
            });
          },
          stream, partials, py::arg("ranges"), py::arg("tensors"), py::arg("width"), py::arg("result"))
      .def(
          "select_sample",
          [](Device& d, const Stream& s, const KernelLaunch& launch, uintptr_t state) {
            launch_on(d, s, [&](cudaStream_t t) { select_sample(t, launch, at<int64_t>(state)); });
          },
          stream, launch, state)
      .def(
          "select_sweep",
          [](Device& d, const Stream& s, const KernelLaunch& launch, uintptr_t state, uintptr_t bins,
             uintptr_t nonfinite) {
            launch_on(d, s, [&](cudaStream_t t) {
              select_sweep(t, launch, at<const int64_t>(state), at<int64_t>(bins), at<int64_t>(nonfinite));
            });
          },
          stream, launch, state, py::arg("bins"), nonfinite)
      .def(
          "shrink_interval",
          [](Device& d, const Stream& s, uintptr_t state, uintptr_t bins, int64_t pairs, bool fp64,
             bool keep_all_ties) {
            launch_on(d, s, [&](cudaStream_t t) {
              shrink_interval(t, at<int64_t>(state), at<int64_t>(bins), pairs, fp64, keep_all_ties);
            });
          },
          stream, state, py::arg("bins"), py::arg("pairs"), py::arg("fp64"), py::arg("keep_all_ties"))
      .def(
          "select_ties",
          [](Device& d, const Stream& s, const KernelLaunch& launch, uintptr_t state, uintptr_t tie_counts) {
            launch_on(d, s, [&](cudaStream_t t) {
              select_ties(t, launch, at<const int64_t>(state), at<int32_t>(tie_counts));
            });
          },
          stream, launch, state, py::arg("tie_counts"))
      .def(
          "select_locate",
          [](Device& d, const Stream& s, uintptr_t state, uintptr_t tie_counts, uintptr_t ranges, int64_t tensors,
             int models) {
            launch_on(d, s, [&](cudaStream_t t) {
              select_locate(t, at<int64_t>(state), at<const int32_t>(tie_counts), at<const int64_t>(ranges), tensors,
                            models);
            });
          },
          stream, state, py::arg("tie_counts"), py::arg("ranges"), py::arg("tensors"), py::arg("models"))
      .def(
          "select_position",
          [](Device& d, const Stream& s, const KernelLaunch& launch, uintptr_t state) {
            launch_on(d, s, [&](cudaStream_t t) { select_position(t, launch, at<int64_t>(state)); });
          },
          stream, launch, state);
}

}  // namespace

PYBIND11_MODULE(WARPMERGE_CUDA_MODULE, m) {
  m.doc() = "CUDA kernels of warpmerge, and the devices they run on.";
  m.def("architectures", &cuda::architectures, "What was compiled in, by compute capability: '80', '90', ...");
  m.def("runtime_version", &cuda::runtime_version, "The CUDA runtime's version that was compiled in: (major, minor).");
  m.def("device_count", &cuda::device_count, Unlocked());
  m.def(
      "why_not",
      []() -> std::optional<std::string> {
        std::string why = cuda::why_not();
        if (why.empty()) return std::nullopt;
        return why;
      },
      "Why no device can be used, in a line; None if one can.", Unlocked());

  py::class_<KernelLaunch>(m, "KernelLaunch", "The table of a launch: see csrc/cuda/launch.h.", py::module_local())
      .def(py::init(&make_launch), py::kw_only(), py::arg("segments"), py::arg("chunks"), py::arg("models"),
           py::arg("outputs"), py::arg("inputs"), py::arg("base"), py::arg("out"), py::arg("fp64"), py::arg("policy"),
           py::arg("aligned"), py::arg("segment_rows"), py::arg("chunk_map"), py::arg("numbers") = 0,
           py::arg("rules") = 0, py::arg("words") = 0);
  py::class_<KernelProgram>(m, "KernelProgram", "The program of a formula: see csrc/cuda/launch.h.", py::module_local())
      .def(py::init(&make_program), py::kw_only(), py::arg("code"), py::arg("instructions"), py::arg("operands"),
           py::arg("constants"), py::arg("values"), py::arg("rules"), py::arg("keys"), py::arg("vectors"),
           py::arg("ranks"), py::arg("file") = 0, py::arg("file_bytes") = 0);

  bind_runtime(m);
  py::class_<Device, std::shared_ptr<Device>> device(m, "Device", py::module_local());
  device.def(py::init<int>(), py::arg("index"), Unlocked())
      .def_property_readonly("index", &Device::index)
      .def_property_readonly("name", &Device::name)
      .def_property_readonly("capability", &Device::capability)
      .def_property_readonly("multiprocessors", &Device::multiprocessors)
      .def_property_readonly("launches", &Device::launches, "Kernels launched so far.")
      .def("memory", &Device::memory, "Bytes: (free, total).", Unlocked())
      .def(
          "alloc", [](const Device& device, int64_t bytes) { return allocate(device, bytes, Memory::Where::device); },
          py::arg("nbytes"), Unlocked())
      .def(
          "pinned", [](const Device& device, int64_t bytes) { return allocate(device, bytes, Memory::Where::pinned); },
          py::arg("nbytes"), Unlocked())
      .def(
          "stream", [](const Device& device) { return std::make_shared<Stream>(device.index()); }, Unlocked())
      .def(
          "external_stream",
          [](const Device& device, uintptr_t handle) {
            return std::make_shared<Stream>(device.index(), at<std::remove_pointer_t<cudaStream_t>>(handle));
          },
          py::arg("handle"));
  bind_kernels(device);

#if defined(WARPMERGE_CUDA_EMULATION)
  bind_emulation(m);
#endif
}
