#include "batches.h"

#include <pybind11/stl.h>

#include "../cpu/elect_and_sum.h"
#include "../cpu/formula_item.h"
#include "../cpu/gram.h"
#include "../cpu/histogram.h"
#include "../cpu/reduce_columns.h"
#include "../cpu/reduce_rows.h"
#include "../cpu/reduce_tensor.h"
#include "../cpu/select.h"
#include "../cpu/weighted_sum.h"
#include "columns.h"

namespace warpmerge {

py::list selections(const SelectItemBase& item) {
  py::list rows;
  for (const Selection& r : item.result()) rows.append(py::make_tuple(r.threshold, r.tie_end, r.above, r.ties));
  return rows;
}

namespace {

// One item for each tensor.
struct Batch {
  std::vector<std::shared_ptr<TensorItem>> items;

  // For each tensor the numbers of elements that are not finite, per input. None if all elements of all tensors are
  // finite.
  py::object nonfinite() const {
    bool any = false;
    for (const auto& item : items) any = any || item->any_nonfinite();
    if (!any) return py::none();
    py::list found;
    for (const auto& item : items) found.append(item->nonfinite());
    return std::move(found);
  }
  template <class Item, class Get>
  py::list each(Get get) const {
    py::list found(items.size());
    for (size_t i = 0; i < items.size(); ++i) found[i] = get(dynamic_cast<const Item&>(*items[i]));
    return found;
  }
};

py::object unfinished(const Batch& batch) {
  Batch again;
  for (const auto& item : batch.items)
    if (const auto* select = dynamic_cast<const SelectItemBase*>(item.get()); select && !select->done())
      again.items.push_back(item);
  if (again.items.empty()) return py::none();
  return py::cast(std::move(again));
}

template <class Make>
Batch batch_of(const Rows& rows, Make make) {
  Batch batch;
  batch.items.reserve(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) batch.items.push_back(make(i, rows.tensors[i]));
  return batch;
}

Batch weighted_sum(const HostPool& pool, const Rows& rows, int64_t tile, const py::buffer& coefficients, bool agree,
                   const Outputs& outputs) {
  const Column<double> numbers(coefficients);
  const size_t n = rows.size();
  rows.check(outputs.places.size(), "outputs");
  rows.check(numbers.size(), n ? rows.models() * (outputs.places.size() / n) : 0, "coefficients");
  return batch_of(rows, [&](size_t i, const auto& tensors) {
    return std::make_shared<WeightedSumItem>(pool.kernels(), tensors, tile, share(numbers, i, n), agree,
                                             share(outputs.places, i, n));
  });
}

// `numbers`: 3 K + 1 for each tensor: values, votes and divisors of its K models, then lambda.
Batch elect_and_sum(const HostPool& pool, const Rows& rows, int64_t tile, const py::buffer& numbers, bool elect,
                    const std::vector<Mask>& keep, const Outputs& outputs) {
  const Column<double> all(numbers);
  const size_t n = rows.size();
  rows.check(all.size(), 3 * rows.models() + n, "numbers");
  rows.check(keep.size(), rows.models(), "masks");
  rows.check(outputs.places.size(), n, "outputs");
  Batch batch = batch_of(rows, [&](size_t i, const auto& tensors) {
    const ptrdiff_t models = tensors->models();
    const double* own = all.begin() + i * size_t(3 * models + 1);
    ElectAndSumCoefficientLists lists{{own, own + models},
                                      {own + models, own + 2 * models},
                                      {own + 2 * models, own + 3 * models},
                                      own[3 * models],
                                      elect};
    return std::make_shared<ElectAndSumItem>(pool.kernels(), tensors, tile, std::move(lists),
                                             MaskRules(*tensors, share(keep, i, n)), outputs.places[i]);
  });
  for (const int64_t row : rows.rows) rows.group->drop(row);
  return batch;
}

Batch map(const HostPool& pool, const Rows& rows, int64_t tile, int agree, const Outputs& outputs) {
  const size_t n = rows.size();
  rows.check(outputs.places.size(), rows.values(), "outputs");
  return batch_of(rows, [&](size_t i, const auto& tensors) {
    if (!tensors->formula || agree < 0 || agree > tensors->models())
      throw py::value_error("a formula, and no more inputs than there are");
    return std::make_shared<FormulaItem>(pool.kernels(), tensors, tile, agree, share(outputs.places, i, n));
  });
}

// `sample` and `capacities` as in make_select_item.
Batch select(const HostPool& pool, const Rows& rows, int64_t tile, const py::buffer& counts, bool keep_all_ties,
             int64_t sample, const py::buffer& capacities) {
  const Column<int64_t> asked(counts), room(capacities);
  const size_t n = rows.size();
  rows.check(asked.size(), rows.values(), "counts");
  rows.check(room.size(), n, "capacities");
  return batch_of(rows, [&](size_t i, const auto& tensors) {
    return make_select_item(pool.kernels(), tensors, tile, share(asked, i, n), keep_all_ties, sample, room[i]);
  });
}

Batch kept_sums(const HostPool& pool, const Rows& rows, int64_t tile, const std::vector<Mask>& keep) {
  rows.check(keep.size(), rows.models(), "masks");
  return batch_of(rows, [&](size_t i, const auto& tensors) {
    if (tensors->formula) throw py::value_error("masks are for deltas");
    auto item =
        std::make_shared<KeptSumsItem>(pool.kernels(), tensors, tile, MaskRules(*tensors, share(keep, i, rows.size())));
    rows.group->keep(rows.rows[i], tensors);
    return item;
  });
}

TermList terms_of(const Tensors& tensors, int64_t columns, int kind, const std::vector<std::pair<int, int>>& pairs) {
  if (!tensors.formula || columns < 1)
    throw py::value_error("rows and columns are measured of a formula, and rows have a length");
  if (kind < int(Term::product) || kind > int(Term::largest)) throw py::value_error("there is no such term");
  return TermList(Term(kind), pairs, tensors.values());
}

template <class Item>
Batch folds(const HostPool& pool, const Rows& rows, int64_t tile, const py::buffer& columns, int term,
            const std::vector<std::pair<int, int>>& pairs) {
  const Column<int64_t> lengths(columns);
  rows.check(lengths.size(), rows.size(), "lengths of rows");
  return batch_of(rows, [&](size_t i, const auto& tensors) {
    return std::make_shared<Item>(pool.kernels(), tensors, tile, lengths[i],
                                  terms_of(*tensors, lengths[i], term, pairs));
  });
}

Batch histogram(const HostPool& pool, const Rows& rows, int64_t tile, const py::buffer& intervals) {
  const Column<uint64_t> ends(intervals);
  rows.check(ends.size(), 2 * rows.values(), "ends of intervals");
  return batch_of(rows, [&](size_t i, const auto& tensors) {
    const std::vector<uint64_t> own = share(ends, i, rows.size());
    std::vector<std::pair<uint64_t, uint64_t>> pairs;
    for (size_t k = 0; k < own.size(); k += 2) pairs.emplace_back(own[k], own[k + 1]);
    return std::make_shared<HistogramItem>(pool.kernels(), tensors, tile, std::move(pairs), pool.threads());
  });
}

template <class Item>
Batch plain(const HostPool& pool, const Rows& rows, int64_t tile) {
  return batch_of(rows,
                  [&](size_t, const auto& tensors) { return std::make_shared<Item>(pool.kernels(), tensors, tile); });
}

std::shared_ptr<ViewColumn> view_column(const py::buffer& dtypes, const py::buffer& file_of, const py::buffer& offsets,
                                        std::vector<std::shared_ptr<File>> regions) {
  return std::make_shared<ViewColumn>(copied<uint8_t>(dtypes), copied<int32_t>(file_of), copied<int64_t>(offsets),
                                      std::move(regions));
}

// Elements of each tensor, for all groups.
struct Counts {
  std::shared_ptr<const std::vector<int64_t>> counts;
};

std::shared_ptr<TensorGroup> tensor_group(const Counts& counts, const std::vector<std::shared_ptr<ViewColumn>>& inputs,
                                          std::shared_ptr<ViewColumn> base, bool fp64, int policy) {
  return std::make_shared<TensorGroup>(counts.counts, std::vector<TensorGroup::Column>(inputs.begin(), inputs.end()),
                                       std::move(base), fp64, Nonfinite(policy));
}

}  // namespace

void bind_batches(py::module_& m, PoolClass& pool) {
  using namespace py::literals;
  py::class_<ViewColumn, std::shared_ptr<ViewColumn>>(m, "ViewColumn", "A view for each row.")
      .def(py::init(&view_column), "dtypes"_a, "file_of"_a, "offsets"_a, "files"_a)
      .def("set", &ViewColumn::set, "row"_a, "view"_a);
  py::class_<Counts>(m, "Counts", "Elements of each tensor.").def(py::init([](const py::buffer& counts) {
    return Counts{std::make_shared<std::vector<int64_t>>(copied<int64_t>(counts))};
  }));
  py::class_<TensorGroup, std::shared_ptr<TensorGroup>>(m, "TensorGroup", "Tensors in columns.")
      .def(py::init(&tensor_group), "counts"_a, "inputs"_a, "base"_a, "fp64"_a, "policy"_a)
      .def("rows", &rows_of, "rows"_a, "with_base"_a, "formulas"_a = std::vector<std::shared_ptr<Formula>>())
      .def("drop", &TensorGroup::drop, "row"_a);
  py::class_<Rows>(m, "TensorRows", "The operands of some tensors of a group.");
  py::class_<Outputs>(m, "Outputs", "Where the results of a batch go.")
      .def_static("in_files", &Outputs::in_files, "dtype"_a, "files"_a, "offsets"_a, "background"_a = nullptr)
      .def_static("in_memory", &Outputs::in_memory, "dtype"_a, "addresses"_a);

  py::class_<Batch>(m, "Batch", "One item for each tensor.")
      .def("__len__", [](const Batch& batch) { return batch.items.size(); })
      .def_property_readonly("items",
                             [](const Batch& batch) {
                               py::list found;
                               for (const auto& item : batch.items) {
                                 // Python does not know the items' own classes.
                                 const auto select = std::dynamic_pointer_cast<SelectItemBase>(item);
                                 found.append(select ? py::cast(select) : py::cast(item));
                               }
                               return found;
                             })
      .def("nonfinite", &Batch::nonfinite, "Of each tensor the counts per input; None if all are finite.")
      .def("digests",
           [](const Batch& batch) {
             return batch.each<CombineItem>([](const CombineItem& item) { return py::int_(item.digests().at(0)); });
           })
      .def("sums",
           [](const Batch& batch) {
             return batch.each<TensorSumsItem>([](const TensorSumsItem& item) { return py::cast(item.result()); });
           })
      .def("selections", [](const Batch& batch) { return batch.each<SelectItemBase>(selections); })
      .def("unfinished", &unfinished, "The items that ask to be submitted again, or None.");

  pool.def(
          "submit",
          [](HostPool& pool, const std::vector<const Batch*>& batches, py::object owner) {
            std::vector<std::shared_ptr<Item>> items;
            for (const Batch* batch : batches) items.insert(items.end(), batch->items.begin(), batch->items.end());
            return pool.submit(std::move(items), std::move(owner));
          },
          "batches"_a, "owner"_a = py::none())
      .def("weighted_sum", &weighted_sum, "rows"_a, "tile"_a, "coefficients"_a, "agree"_a, "outputs"_a)
      .def("elect_and_sum", &elect_and_sum, "rows"_a, "tile"_a, "numbers"_a, "elect"_a, "keep"_a, "outputs"_a)
      .def("map", &map, "rows"_a, "tile"_a, "agree"_a, "outputs"_a)
      .def("select", &select, "rows"_a, "tile"_a, "counts"_a, "keep_all_ties"_a, "sample"_a, "capacities"_a)
      .def("tensor_sums", &plain<TensorSumsItem>, "rows"_a, "tile"_a)
      .def("kept_sums", &kept_sums, "rows"_a, "tile"_a, "keep"_a)
      .def("reduce_rows", &folds<RowsItem>, "rows"_a, "tile"_a, "columns"_a, "term"_a, "pairs"_a)
      .def("reduce_columns", &folds<ColumnsItem>, "rows"_a, "tile"_a, "columns"_a, "term"_a, "pairs"_a)
      .def("histogram", &histogram, "rows"_a, "tile"_a, "intervals"_a)
      .def("gram", &plain<GramItem>, "rows"_a, "tile"_a);
}

}  // namespace warpmerge
