// Bindings of the mixtures, the sample index and the gathering of samples: types and sizes are checked here.
// Python twins: megatron_ext/sampling_numpy.py; megatron_ext/native.py chooses.

#include "bindings_sampling.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "blend_scan.h"
#include "gather.h"
#include "operations.h"

namespace py = pybind11;

namespace megatron_ext {
namespace {

using Int32Array = py::array_t<std::int32_t, py::array::c_style | py::array::forcecast>;
using Int64Array = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;
using DoubleArray = py::array_t<double, py::array::c_style | py::array::forcecast>;

void refuse(bool wrong, const char* why) {
    if (wrong) throw std::invalid_argument(why);
}

void check_blend(std::int64_t num_datasets, std::int64_t num_counts, std::int64_t start, std::int64_t count) {
    refuse(num_datasets < 1 || num_datasets > 32767, "blend: 1 to 32767 datasets");
    refuse(num_counts != num_datasets, "blend: one count per dataset is needed");
    refuse(start < 0 || count < 0, "blend: start and count must not be negative");
}

template <typename Shares, typename Draw>
py::tuple drawn_places(const Shares& shares, const Int64Array& drawn, std::int64_t count, const Draw& draw) {
    py::array_t<std::int16_t> dataset(count);
    Int64Array sample(count), after(drawn.size());
    std::copy(drawn.data(), drawn.data() + drawn.size(), after.mutable_data());
    const auto* share_data = shares.data();
    const std::int64_t num_datasets = shares.size();
    std::int64_t *after_data = after.mutable_data(), *sample_data = sample.mutable_data();
    std::int16_t* dataset_data = dataset.mutable_data();
    {
        py::gil_scoped_release release;
        draw(share_data, num_datasets, after_data, dataset_data, sample_data);
    }
    return py::make_tuple(dataset, sample, after);
}

py::tuple bound_blend(const DoubleArray& weights, const Int64Array& drawn, std::int64_t start, std::int64_t count,
                      const std::string& scan) {
    check_blend(weights.size(), drawn.size(), start, count);
    refuse(!std::all_of(weights.data(), weights.data() + weights.size(), [](double w) { return std::isfinite(w); }),
           "blend: weights are finite numbers");
    return drawn_places(weights, drawn, count, [&](auto shares, auto size, auto after, auto dataset, auto sample) {
        blend(shares, size, start, count, after, dataset, sample, scan);
    });
}

py::tuple bound_blend_all(const Int64Array& sizes, const Int64Array& drawn, std::int64_t start, std::int64_t count,
                          const std::string& scan) {
    check_blend(sizes.size(), drawn.size(), start, count);
    std::int64_t open = 0;
    for (std::int64_t i = 0; i < sizes.size(); ++i) {
        refuse(drawn.data()[i] < 0 || drawn.data()[i] > sizes.data()[i], "blend: a count lies outside its dataset");
        open += sizes.data()[i] - drawn.data()[i];
    }
    refuse(count > open, "blend: more samples are asked for than are left");
    return drawn_places(sizes, drawn, count, [&](auto shares, auto size, auto after, auto dataset, auto sample) {
        blend_all(shares, size, start, count, after, dataset, sample, scan);
    });
}

py::tuple bound_spread(const Int64Array& thresholds, std::int64_t start, std::int64_t count) {
    constexpr std::int64_t end = std::int64_t{1} << kSpreadBits;
    const std::int64_t num_datasets = thresholds.size() - 1, *data = thresholds.data();
    refuse(num_datasets < 1 || num_datasets > 32767, "spread: 1 to 32767 datasets");
    refuse(data[0] != 0 || data[num_datasets] != end || !std::is_sorted(data, data + num_datasets + 1),
           "spread: thresholds rise from 0 to 2^53");
    refuse(start < 0 || count < 0 || start > end - count, "spread: places lie between 0 and 2^53");
    py::array_t<std::int16_t> dataset(count);
    Int64Array rank(count);
    std::int16_t* dataset_data = dataset.mutable_data();
    std::int64_t* rank_data = rank.mutable_data();
    {
        py::gil_scoped_release release;
        spread(data, num_datasets, start, count, dataset_data, rank_data);
    }
    return py::make_tuple(dataset, rank);
}

Int64Array bound_spread_counts(std::int64_t place, const Int64Array& thresholds) {
    constexpr std::int64_t end = std::int64_t{1} << kSpreadBits;
    const std::int64_t size = thresholds.size(), *data = thresholds.data();
    refuse(place < 0 || place > end, "spread: places lie between 0 and 2^53");
    refuse(!std::all_of(data, data + size, [](std::int64_t t) { return 0 <= t && t <= end; }),
           "spread: thresholds lie between 0 and 2^53");
    Int64Array counts(size);
    spread_counts(place, data, size, counts.mutable_data());
    return counts;
}

std::vector<std::string> scan_names() {
    std::vector<std::string> names;
    for (const BlendScan& scan : blend_scans()) names.emplace_back(scan.name);
    return names;
}

template <typename Document, typename Index>
py::array typed_sample_index(const Int32Array& lengths, const py::array& documents, const SamplePlace& from) {
    const auto drawn = py::array_t<Document, py::array::c_style>::ensure(documents);
    const std::int32_t* length_data = lengths.data();
    const Document* document_data = drawn.data();
    const std::int64_t num_lengths = lengths.size(), num_documents = drawn.size();
    std::int64_t num_rows = 0;
    {
        py::gil_scoped_release release;
        const std::int64_t tokens = count_tokens(length_data, num_lengths, document_data, num_documents);
        if (tokens > std::numeric_limits<std::int64_t>::max() - from.token - from.seq_length) {
            throw std::invalid_argument("sample_index: more than 2^63 tokens");
        }
        num_rows = count_samples(from, tokens, num_documents);
    }
    py::array_t<Index> rows({num_rows, std::int64_t{2}});
    Index* row_data = rows.mutable_data();
    {
        py::gil_scoped_release release;
        sample_index(length_data, document_data, num_documents, from, row_data);
    }
    return rows;
}

template <typename Document>
py::array chosen_sample_index(const Int32Array& lengths, const py::array& documents, const SamplePlace& from,
                              bool wide) {
    if (wide) return typed_sample_index<Document, std::int64_t>(lengths, documents, from);
    const bool fits = from.document + documents.size() <= std::numeric_limits<std::int32_t>::max();
    refuse(!fits, "sample_index: so many documents need int64 rows");
    return typed_sample_index<Document, std::int32_t>(lengths, documents, from);
}

bool is_wide(const py::array& integers, const char* why) {
    const bool wide = integers.dtype().equal(py::dtype::of<std::int64_t>());
    refuse(!wide && !integers.dtype().equal(py::dtype::of<std::int32_t>()), why);
    return wide;
}

py::array bound_sample_index(const Int32Array& lengths, const py::array& documents, std::int64_t seq_length,
                             std::int64_t first_document, std::int64_t first_token, bool wide) {
    refuse(seq_length < 1, "sample_index: seq_length is at least 1");
    refuse(first_document < 0 || first_token < 0, "sample_index: the place must not be negative");
    refuse(documents.ndim() != 1, "sample_index: documents are one row");
    const SamplePlace from{first_document, first_token, seq_length};
    return is_wide(documents, "sample_index: documents are int32 or int64")
               ? chosen_sample_index<std::int64_t>(lengths, documents, from, wide)
               : chosen_sample_index<std::int32_t>(lengths, documents, from, wide);
}

TokenType token_type(const py::array& tokens) {
    const py::dtype type = tokens.dtype();
    if (type.equal(py::dtype::of<std::uint16_t>())) return TokenType::kUint16;
    if (type.equal(py::dtype::of<std::int32_t>())) return TokenType::kInt32;
    if (type.equal(py::dtype::of<std::uint8_t>())) return TokenType::kUint8;
    if (type.equal(py::dtype::of<std::int8_t>())) return TokenType::kInt8;
    if (type.equal(py::dtype::of<std::int16_t>())) return TokenType::kInt16;
    if (type.equal(py::dtype::of<std::int64_t>())) return TokenType::kInt64;
    throw std::invalid_argument("gather: tokens must be of an integer type");
}

const void* contiguous(const py::array& array, const char* why) {
    refuse(!(array.flags() & py::array::c_style), why);
    return array.data();
}

template <typename Value>
const Value* typed(const py::array& array, std::int64_t size, const char* why) {
    refuse(!array.dtype().equal(py::dtype::of<Value>()) || array.ndim() != 1 || array.size() != size, why);
    return static_cast<const Value*>(contiguous(array, why));
}

Stored stored(const py::array& tokens, const py::object& mask) {
    refuse(tokens.ndim() != 1, "gather: tokens must be one contiguous row");
    const void* data = contiguous(tokens, "gather: tokens must be one contiguous row");
    const char* why = "gather: the mask must be uint8, one for each token";
    return {data, token_type(tokens), tokens.size(),
            mask.is_none() ? nullptr : typed<std::uint8_t>(py::cast<py::array>(mask), tokens.size(), why)};
}

// The batch is written in place, so that it must be exactly of the type and layout that is written.
Batch batch_of(const Int64Array& rows, std::int64_t num_rows, py::array& tokens, const py::object& mask) {
    const char* why = "gather: the batch must be writable contiguous int64 tokens and a uint8 mask of the same shape";
    refuse(rows.ndim() != 1 || rows.size() != num_rows, "gather: one row per sample is needed");
    refuse(tokens.ndim() != 2 || !tokens.dtype().equal(py::dtype::of<std::int64_t>()) || !tokens.writeable(), why);
    contiguous(tokens, why);
    Batch batch{static_cast<std::int64_t*>(tokens.mutable_data()), nullptr, rows.data(), num_rows, tokens.shape(0),
                tokens.shape(1)};
    if (mask.is_none()) return batch;
    py::array codes = py::cast<py::array>(mask);
    refuse(codes.ndim() != 2 || codes.shape(0) != batch.height || codes.shape(1) != batch.width || !codes.writeable() ||
               !codes.dtype().equal(py::dtype::of<std::uint8_t>()), why);
    contiguous(codes, why);
    batch.mask = static_cast<std::uint8_t*>(codes.mutable_data());
    return batch;
}

template <typename Gather>
py::tuple extent_of(bool wanted, const Gather& gather) {
    Extent extent{wanted, 0, -1};
    {
        py::gil_scoped_release release;
        gather(extent);
    }
    return py::make_tuple(extent.smallest, extent.largest);
}

py::tuple bound_gather_windows(const py::tuple& source, const Int64Array& begins, const Int64Array& ends, std::int64_t pad,
                               const py::tuple& target, bool with_extent) {
    refuse(source.size() != 2 || target.size() != 3, "gather: source is (tokens, mask), target (rows, tokens, mask)");
    const Stored from = stored(py::cast<py::array>(source[0]), source[1]);
    const Int64Array rows = py::cast<Int64Array>(target[0]);
    refuse(begins.size() != ends.size(), "gather: begins and ends differ in length");
    py::array tokens = py::cast<py::array>(target[1]);
    const Batch batch = batch_of(rows, begins.size(), tokens, target[2]);
    const std::int64_t *begin_data = begins.data(), *end_data = ends.data();
    return extent_of(with_extent, [&](Extent& extent) { gather_windows(from, begin_data, end_data, pad, batch, extent); });
}

py::tuple bound_gather_documents(const py::tuple& source, const py::tuple& order, const Int64Array& samples,
                                 const py::tuple& target, bool with_extent) {
    refuse(source.size() != 2 || target.size() != 3, "gather: source is (tokens, mask), target (rows, tokens, mask)");
    refuse(order.size() != 4, "gather: order is (lengths, pointers, documents, index)");
    const py::array stored_tokens = py::cast<py::array>(source[0]), lengths = py::cast<py::array>(order[0]),
                    pointers = py::cast<py::array>(order[1]), documents = py::cast<py::array>(order[2]),
                    index = py::cast<py::array>(order[3]);
    const Stored from = stored(stored_tokens, source[1]);
    const char* why = "gather: lengths are int32, pointers int64, one of each for each sequence";
    refuse(index.ndim() != 2 || index.shape(1) != 2, "gather: the index has two columns");
    const DrawnDocuments drawn{
        typed<std::int32_t>(lengths, lengths.size(), why),
        typed<std::int64_t>(pointers, lengths.size(), why),
        lengths.size(),
        stored_tokens.itemsize(),
        {contiguous(documents, "gather: documents are contiguous"), is_wide(documents, "gather: documents are int32 or int64")},
        documents.size(),
        {contiguous(index, "gather: the index is contiguous"), is_wide(index, "gather: the index is int32 or int64")},
        index.shape(0)};
    const Int64Array rows = py::cast<Int64Array>(target[0]);
    py::array tokens = py::cast<py::array>(target[1]);
    const Batch batch = batch_of(rows, samples.size(), tokens, target[2]);
    const std::int64_t* sample_data = samples.data();
    return extent_of(with_extent, [&](Extent& extent) { gather_documents(from, drawn, sample_data, batch, extent); });
}

}  // namespace

void bind_sampling(py::module_& module) {
    module.def("blend", &bound_blend, py::arg("weights"), py::arg("drawn"), py::arg("start"), py::arg("count"),
               py::arg("scan") = "");
    module.def("blend_all", &bound_blend_all, py::arg("sizes"), py::arg("drawn"), py::arg("start"), py::arg("count"),
               py::arg("scan") = "");
    module.def("blend_scans", &scan_names);
    module.def("spread", &bound_spread, py::arg("thresholds"), py::arg("start"), py::arg("count"));
    module.def("spread_counts", &bound_spread_counts, py::arg("place"), py::arg("thresholds"));
    module.def("sample_index", &bound_sample_index, py::arg("lengths"), py::arg("documents"), py::arg("seq_length"),
               py::arg("first_document") = 0, py::arg("first_token") = 0, py::arg("wide") = false);
    module.def("gather_windows", &bound_gather_windows, py::arg("source"), py::arg("begins"), py::arg("ends"),
               py::arg("pad"), py::arg("target"), py::arg("with_extent") = false);
    module.def("gather_documents", &bound_gather_documents, py::arg("source"), py::arg("order"), py::arg("samples"),
               py::arg("target"), py::arg("with_extent") = false);
}

}  // namespace megatron_ext
