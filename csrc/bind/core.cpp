// The module warpmerge._core: kernels, thread pool and file access of the CPU. Plain data go in and come out.
//
// Tensors cross as views: a dtype code and an address, or a file and an offset. Python keeps memory alive and has
// checked shapes. So a wrong address is not noticed here. Nothing here imports torch or numpy, so a merge on the CPU
// needs neither.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <system_error>

#include "../cpu/elect_and_sum.h"
#include "../cpu/formula_item.h"
#include "../cpu/gram.h"
#include "../cpu/histogram.h"
#include "../cpu/low_rank.h"
#include "../cpu/reduce_columns.h"
#include "../cpu/reduce_rows.h"
#include "../cpu/reduce_tensor.h"
#include "../cpu/select.h"
#include "../cpu/weighted_sum.h"
#include "../ops/digest.h"
#include "../ops/select.h"
#include "batches.h"
#include "files.h"
#include "headers.h"

namespace py = pybind11;
using namespace warpmerge;

namespace {

View direct_view(int dtype, uintptr_t memory, std::shared_ptr<File> file, int64_t offset) {
  return {Dtype(dtype), reinterpret_cast<const char*>(memory), std::move(file), offset, nullptr};
}

View composed(Dtype dtype, std::shared_ptr<const Composition> composition) {
  return {dtype, nullptr, nullptr, 0, std::move(composition)};
}

View gathered_view(const View& source, const py::buffer& index, int64_t row_bytes) {
  const py::buffer_info info = index.request();
  if (!info.item_type_is_equivalent_to<int64_t>() || info.ndim != 1 || info.strides[0] != sizeof(int64_t))
    throw py::value_error("the index of rows is a contiguous one of int64");
  const int64_t* rows = static_cast<const int64_t*>(info.ptr);  // copied: workers cannot hold Python objects
  return composed(source.dtype,
                  std::make_shared<GatheredRows>(source, std::vector<int64_t>(rows, rows + info.size), row_bytes));
}

View joined_view(std::vector<View> parts, std::vector<int64_t> starts) {
  if (parts.empty() || starts.size() != parts.size() + 1)
    throw py::value_error("a joined view needs at least one part, and one more start than it has parts");
  const Dtype dtype = parts[0].dtype;
  return composed(dtype, std::make_shared<JoinedParts>(std::move(parts), std::move(starts)));
}

View mean_view(int dtype, std::vector<View> sources, const py::buffer& index, int64_t row_elements) {
  const py::buffer_info info = index.request();
  if (!info.item_type_is_equivalent_to<int64_t>() || info.ndim != 2 || info.strides[1] != sizeof(int64_t) ||
      info.strides[0] != info.shape[1] * int64_t(sizeof(int64_t)) || sources.empty() ||
      info.shape[0] != py::ssize_t(sources.size()))
    throw py::value_error("the index of means is a contiguous one of int64, a row for each source");
  const int64_t* rows = static_cast<const int64_t*>(info.ptr);  // copied: workers cannot hold Python objects
  return composed(Dtype(dtype), std::make_shared<MeanRows>(Dtype(dtype), std::move(sources),
                                                           std::vector<int64_t>(rows, rows + info.size), row_elements));
}

const Kernels& kernels_named(const std::string& isa) {
  const Kernels* kernels = find_kernels(isa.c_str());
  if (!kernels) throw py::value_error("instruction set '" + isa + "' is unknown or not available on this processor");
  return *kernels;
}

View low_rank_view(const View& base, View left, View right, int64_t rows, int64_t columns, int rank, bool transposed,
                   double scale, const std::optional<View>& magnitudes, bool by_column, const std::string& isa) {
  return composed(base.dtype, std::make_shared<LowRank>(
                                  kernels_named(isa), base, std::move(left), std::move(right),
                                  LowRank::Shape{rows, columns, rank, transposed}, scale,
                                  magnitudes ? std::make_shared<const View>(*magnitudes) : nullptr, by_column));
}

View rounded_view(View source, int dtype, const std::string& isa) {
  return composed(Dtype(dtype), std::make_shared<Rounded>(kernels_named(isa), std::move(source), Dtype(dtype)));
}

using StepRow = std::array<int, 6>;

std::shared_ptr<Code> make_code(int inputs, const std::vector<StepRow>& rows, int registers, std::vector<int> outputs,
                                int constants) {
  std::vector<Step> steps;
  for (const auto& [op, target, a, b, c, payload] : rows) steps.push_back({FormulaOp(op), target, a, b, c, payload});
  return std::make_shared<Code>(inputs, std::move(steps), registers, std::move(outputs), constants);
}

std::shared_ptr<Formula> make_formula(std::shared_ptr<Code> code, std::vector<double> constants,
                                      std::vector<Mask> rules, std::vector<uint64_t> keys,
                                      const std::vector<py::buffer>& vectors, int64_t columns) {
  std::vector<std::vector<double>> copies;  // workers must not have to release Python objects
  for (const py::buffer& vector : vectors) {
    const py::buffer_info info = vector.request();
    if (info.format != py::format_descriptor<double>::format() || info.ndim != 1 || info.strides[0] != sizeof(double))
      throw py::value_error("a formula's vector is a contiguous one of float64");
    const double* data = static_cast<const double*>(info.ptr);
    copies.emplace_back(data, data + info.size);
  }
  return std::make_shared<Formula>(std::move(code), std::move(constants), std::move(rules), std::move(keys),
                                   std::move(copies), columns);
}

// A read-only buffer, row-major.
py::buffer_info matrix_of(double* data, int64_t rows, int64_t columns) {
  constexpr int64_t kCell = sizeof(double);
  return py::buffer_info(data, {rows, columns}, {columns * kCell, kCell}, true);
}

// Waits with the GIL released: other Python threads run, and Ctrl-C is seen within `milliseconds`.
bool wait_for(Launch& launch, int milliseconds) {
  bool done;
  {
    py::gil_scoped_release release;
    done = launch.wait_for(milliseconds);
  }
  if (done) launch.check();
  return done;
}

using ItemPtr = std::shared_ptr<Item>;

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "CPU kernels, thread pool and file access of warpmerge.";
  bind_files(m);
  bind_headers(m);
  m.attr("BLOCK") = kBlock;
  m.attr("HELD_FACTORS") = kHeldFactors;
  m.def("digest_length", &digest_length, py::arg("bytes"), "The length's share of the digest of so many bytes.");
  m.def("compiler", [] { return std::string(__VERSION__); });
  m.def(
      "isas",
      [] {
        std::vector<std::string> names;
        for (const char* name : {"avx512", "avx2", "baseline"})
          if (find_kernels(name)) names.push_back(name);
        return names;
      },
      "Instruction sets compiled in and available on this processor, the best one first.");

  py::class_<Guard>(m, "Guard", "Calls an action to its end when a block is left, whatever signals arrive.")
      .def(py::init<py::object>(), py::arg("action"))
      .def("__enter__", [](py::object self) { return self; })
      .def("__exit__",
           [](const Guard& guard, const py::object& type, const py::object&, const py::object&) { guard.exit(type); });
  py::class_<View>(m, "View", "Where a tensor's elements come from: memory, a file, or other views.")
      .def(py::init(&direct_view), py::arg("dtype"), py::arg("memory") = 0, py::arg("file") = nullptr,
           py::arg("offset") = 0)
      .def_static("gathered", &gathered_view, py::arg("source"), py::arg("index"), py::arg("row_bytes"))
      .def_static("joined", &joined_view, py::arg("parts"), py::arg("starts"))
      .def_static("mean_rows", &mean_view, py::arg("dtype"), py::arg("sources"), py::arg("index"),
                  py::arg("row_elements"))
      .def("sum_rows", &sum_rows, py::arg("rows"), py::arg("row_elements"), py::call_guard<py::gil_scoped_release>(),
           "The sum of its rows in double, added one after the other.")
      .def_static("low_rank", &low_rank_view, py::arg("base"), py::arg("left"), py::arg("right"), py::arg("rows"),
                  py::arg("columns"), py::arg("rank"), py::arg("transposed"), py::arg("scale"), py::arg("magnitudes"),
                  py::arg("by_column"), py::arg("isa") = "")
      .def_static("rounded", &rounded_view, py::arg("source"), py::arg("dtype"), py::arg("isa") = "")
      .def("from_byte", &View::from, py::arg("byte"), "The same view without its first bytes.");
  py::class_<Code, std::shared_ptr<Code>>(m, "Code", "A structure of warpmerge.expr.program.")
      .def(py::init(&make_code), py::arg("inputs"), py::arg("code"), py::arg("registers"), py::arg("outputs"),
           py::arg("constants"));
  py::class_<Formula, std::shared_ptr<Formula>>(m, "Formula", "A code and what fills its slots; vectors are copied.")
      .def(py::init(&make_formula), py::arg("code"), py::arg("constants"), py::arg("rules"), py::arg("keys"),
           py::arg("vectors"), py::arg("columns"));

  py::class_<Output>(m, "Output")
      .def(py::init([](int dtype, uintptr_t memory, std::shared_ptr<File> file, int64_t offset,
                       std::shared_ptr<Background> background) {
             return Output{Dtype(dtype), reinterpret_cast<char*>(memory), std::move(file), offset,
                           std::move(background)};
           }),
           py::arg("dtype"), py::arg("memory") = 0, py::arg("file") = nullptr, py::arg("offset") = 0,
           py::arg("background") = nullptr);

  py::class_<Mask>(m, "Mask")
      .def(py::init([](uint64_t threshold, int64_t tie_end) {
             Mask keep;
             keep.threshold = threshold;
             keep.tie_end = tie_end;
             return keep;
           }),
           py::arg("threshold") = 0, py::arg("tie_end") = INT64_MAX)
      .def_static(
          "drawn",
          [](uint64_t key, uint32_t cut) {
            Mask keep;
            keep.random = true;
            keep.key = key;
            keep.cut = cut;
            return keep;
          },
          py::arg("key"), py::arg("cut"))
      .def_static(
          "ranked",
          [](uint64_t key, double low, double step, int64_t columns) {
            Mask keep;
            keep.key = key;
            keep.low = low;
            keep.step = step;
            keep.columns = columns;
            return keep;
          },
          py::arg("key"), py::arg("low"), py::arg("step"), py::arg("columns"));

  py::class_<Item, ItemPtr>(m, "Item");
  py::class_<TensorItem, Item, std::shared_ptr<TensorItem>>(m, "TensorItem")
      .def_property_readonly("nonfinite", &TensorItem::nonfinite);
  py::class_<CombineItem, TensorItem, std::shared_ptr<CombineItem>>(m, "CombineItem")
      .def_property_readonly("digests", &CombineItem::digests);
  py::class_<WeightedSumItem, CombineItem, std::shared_ptr<WeightedSumItem>>(m, "WeightedSum");
  py::class_<ElectAndSumItem, CombineItem, std::shared_ptr<ElectAndSumItem>>(m, "ElectAndSum");
  py::class_<FormulaItem, CombineItem, std::shared_ptr<FormulaItem>>(m, "Apply");
  py::class_<CopyItem, Item, std::shared_ptr<CopyItem>>(m, "Copy")
      .def_property_readonly("digest", &CopyItem::digest)
      .def_property_readonly("partial_digest", &CopyItem::partial_digest);
  py::class_<TensorSumsItem, TensorItem, std::shared_ptr<TensorSumsItem>>(m, "TensorSums")
      .def_property_readonly("result", &TensorSumsItem::result);
  py::class_<KeptSumsItem, TensorSumsItem, std::shared_ptr<KeptSumsItem>>(m, "KeptSums");
  py::class_<GramItem, TensorItem, std::shared_ptr<GramItem>>(m, "Gram").def_property_readonly("result",
                                                                                               &GramItem::result);
  py::class_<RowsItem, TensorItem, std::shared_ptr<RowsItem>>(m, "Rows", py::buffer_protocol(),
                                                              "As a buffer: float64, terms x rows.")
      .def_buffer([](RowsItem& item) { return matrix_of(item.result(), item.terms(), item.rows()); });
  py::class_<ColumnsItem, TensorItem, std::shared_ptr<ColumnsItem>>(m, "Columns", py::buffer_protocol(),
                                                                    "As a buffer: float64, terms x columns.")
      .def_buffer([](ColumnsItem& item) { return matrix_of(item.result(), item.terms(), item.columns()); });
  py::class_<HistogramItem, TensorItem, std::shared_ptr<HistogramItem>>(
      m, "Histogram", py::buffer_protocol(), "As a buffer: int64, a row of bins per delta or value.")
      .def_property_readonly("above", &HistogramItem::above)
      .def_property_readonly("shifts", &HistogramItem::shifts)
      .def(
          "only",
          [](const HistogramItem& item, size_t value) {
            const std::vector<uint64_t>& keys = item.only(value);
            return py::bytes(reinterpret_cast<const char*>(keys.data()), keys.size() * sizeof(uint64_t));
          },
          py::arg("value"),
          "int64: the one key in each bin, -1 if there are several; empty where bins are single keys.")
      .def_buffer([](HistogramItem& item) {
        constexpr int64_t kCell = sizeof(int64_t);
        return py::buffer_info(item.bins(), {int64_t(item.above().size()), int64_t(kHistogramBins)},
                               {kHistogramBins * kCell, kCell}, true);
      });
  py::class_<SelectItemBase, TensorItem, std::shared_ptr<SelectItemBase>>(m, "Select")
      .def_property_readonly("done", &SelectItemBase::done)
      .def_property_readonly("sweeps", &SelectItemBase::sweeps)
      .def_property_readonly("result", &selections);

  py::class_<Launch, std::shared_ptr<Launch>>(m, "Launch")
      .def("wait", &wait_for, py::arg("milliseconds"), "True when done; raises what a worker raised.")
      .def("cancel", &Launch::cancel);

  PoolClass pool(m, "Pool");
  pool.def(py::init([](int threads, const std::string& isa) {
             return std::make_shared<HostPool>(threads, kernels_named(isa));
           }),
           py::arg("threads"), py::arg("isa") = "")
      .def_property_readonly("threads", &HostPool::threads)
      .def_property_readonly("isa", [](const HostPool& pool) { return pool.kernels().isa; })
      .def("submit", &HostPool::submit, py::arg("items"), py::arg("owner") = py::none(),
           "Starts items; `owner` lives until they are done.")
      .def("settle", &HostPool::settle, "Drops what has not started and waits for what has; no signal ends the wait.")
      .def(
          "copy",
          [](const HostPool& pool, View source, int64_t bytes, int64_t tile_bytes, Output output, int64_t position,
             bool digested) {
            return std::make_shared<CopyItem>(pool.kernels(), std::move(source), bytes, tile_bytes, std::move(output),
                                              position, digested);
          },
          py::arg("source"), py::arg("bytes"), py::arg("tile_bytes"), py::arg("output"), py::arg("position") = 0,
          py::arg("digested") = true);
  bind_batches(m, pool);
}
