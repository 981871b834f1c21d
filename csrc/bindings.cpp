// The Python module megatron_ext._native: checks array types and sizes, releases the GIL, calls the operations.
// Python twins of all of them: megatron_ext/native_numpy.py; megatron_ext/native.py chooses. What mixes, indexes and
// gathers samples is bound in bindings_sampling.cpp.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <limits>
#include <stdexcept>

#include "bindings_bpe.h"
#include "bindings_sampling.h"
#include "operations.h"

namespace py = pybind11;

namespace {

using Int32Array = py::array_t<std::int32_t, py::array::c_style | py::array::forcecast>;
using Int64Array = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

py::array_t<float> counter_normal(std::uint64_t key, std::int64_t start, std::int64_t count) {
    if (start < 0 || count < 0) throw std::invalid_argument("counter_normal: start and count must not be negative");
    py::array_t<float> out(count);
    float* target = out.mutable_data();
    {
        py::gil_scoped_release release;
        megatron_ext::counter_normal(key, start, count, target);
    }
    return out;
}

Int64Array permute(std::uint64_t key, std::int64_t size, const Int64Array& indices) {
    Int64Array out(indices.size());
    const std::int64_t* source = indices.data();
    std::int64_t* target = out.mutable_data();
    const std::int64_t count = indices.size();
    {
        py::gil_scoped_release release;
        megatron_ext::permute(key, size, source, count, target);
    }
    return out;
}

py::tuple misplaced_ids(const py::array& ids, std::int64_t num_ids, std::int64_t ids_at_once) {
    const bool is_row = ids.ndim() == 1 && ids.dtype().equal(py::dtype::of<std::int64_t>());
    if (!is_row || !(ids.flags() & py::array::c_style)) {
        throw std::invalid_argument("misplaced_ids: ids are one contiguous row of int64");
    }
    constexpr std::int64_t largest = std::int64_t{1} << 62;
    if (num_ids < 0 || num_ids > largest || ids_at_once < 0 || ids_at_once > largest) {
        throw std::invalid_argument("misplaced_ids: num_ids and ids_at_once must be in [0, 2^62]");
    }
    const auto* data = static_cast<const std::int64_t*>(ids.data());
    const std::int64_t count = ids.size();
    megatron_ext::MisplacedIds found{};
    {
        py::gil_scoped_release release;
        found = megatron_ext::misplaced_ids(data, count, num_ids, ids_at_once);
    }
    return py::make_tuple(found.outside, found.repeated);
}

template <typename Token>
py::tuple pack_typed(const Int32Array& ids, const Int64Array& lengths, std::int64_t eod, std::int64_t documents) {
    py::bytes out(nullptr, (ids.size() + (eod >= 0 ? documents : 0)) * sizeof(Token));
    Int64Array document_lengths(documents);
    Token* target = reinterpret_cast<Token*>(PyBytes_AS_STRING(out.ptr()));
    const std::int32_t* id_data = ids.data();
    const std::int64_t *length_data = lengths.data(), num_texts = lengths.size();
    std::int64_t *document_data = document_lengths.mutable_data(), largest = -1;
    {
        py::gil_scoped_release release;
        largest = megatron_ext::pack_tokens<Token>(id_data, length_data, num_texts, eod, target, document_data);
    }
    return py::make_tuple(out, document_lengths, largest);
}

py::tuple pack_tokens(const Int32Array& ids, const Int64Array& lengths, std::int64_t eod, std::int64_t itemsize) {
    std::int64_t total = 0, documents = 0;
    for (std::int64_t text = 0; text < lengths.size(); ++text) {
        if (lengths.data()[text] < 0) throw std::invalid_argument("pack_tokens: a length is negative");
        total += lengths.data()[text];
        documents += lengths.data()[text] > 0;
    }
    if (total != ids.size()) throw std::invalid_argument("pack_tokens: the lengths do not add up to the number of ids");
    if (eod > std::numeric_limits<std::int32_t>::max()) throw std::invalid_argument("pack_tokens: eod is too large");
    if (itemsize == 2) return pack_typed<std::uint16_t>(ids, lengths, eod, documents);
    if (itemsize == 4) return pack_typed<std::int32_t>(ids, lengths, eod, documents);
    throw std::invalid_argument("pack_tokens: itemsize is 2 (uint16) or 4 (int32)");
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "Compiled data operations of megatron_ext; import them through megatron_ext.native.";
    module.def("counter_normal", &counter_normal, py::arg("key"), py::arg("start"), py::arg("count"));
    module.def("permute", &permute, py::arg("key"), py::arg("size"), py::arg("indices"));
    module.def("misplaced_ids", &misplaced_ids, py::arg("ids"), py::arg("num_ids"), py::arg("ids_at_once"));
    module.def("pack_tokens", &pack_tokens, py::arg("ids"), py::arg("lengths"), py::arg("eod"), py::arg("itemsize"));
    megatron_ext::bind_sampling(module);
    megatron_ext::bind_bpe(module);
}
