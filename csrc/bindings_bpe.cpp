// Python classes SentencePieceBpe, ByteLevelBpe, PairBpe: plain lists and arrays in, ids out, the GIL released meanwhile.
// What they compute is checked against the reference libraries, not against a twin: without the extension the tokenizers
// use those libraries (megatron_ext/tokenizer).

#include "bindings_bpe.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "byte_level_bpe.h"
#include "sentencepiece_bpe.h"

namespace py = pybind11;

namespace megatron_ext {
namespace {

using Int32Array = py::array_t<std::int32_t, py::array::c_style | py::array::forcecast>;
using ByteArray = py::array_t<std::uint8_t, py::array::c_style | py::array::forcecast>;
using TokenList = std::vector<std::pair<std::string, std::int32_t>>;

template <typename T>
std::vector<T> vector_of(const py::array_t<T, py::array::c_style | py::array::forcecast>& array) {
    return std::vector<T>(array.data(), array.data() + array.size());
}

std::vector<std::string_view> views_of(const std::vector<std::string>& texts) { return {texts.begin(), texts.end()}; }

std::vector<ByteLevelBpe::Token> views_of(const TokenList& tokens) { return {tokens.begin(), tokens.end()}; }

// The UTF-8 of Python strings, which owns what it points to. A text with lone surrogates has none and gets a null pointer.
struct Utf8Texts {
    explicit Utf8Texts(const py::sequence& texts) : owner(py::reinterpret_steal<py::tuple>(PySequence_Tuple(texts.ptr()))) {
        if (!owner) throw py::error_already_set();
        views.reserve(owner.size());
        for (const py::handle text : owner) {
            if (!PyUnicode_Check(text.ptr())) throw py::type_error("a text is not a str");
            Py_ssize_t size = 0;
            const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
            if (data == nullptr) PyErr_Clear();
            views.emplace_back(data, data == nullptr ? 0 : static_cast<std::size_t>(size));
        }
    }

    py::tuple owner;
    std::vector<std::string_view> views;
};

// ids int32 [t], lengths int64 [n], and the indices of the texts that were declined (they have length 0): lone surrogates,
// characters of uncertain class.
template <typename Encoder>
py::tuple encode_batch(Encoder& encoder, const py::sequence& texts) {
    const Utf8Texts input(texts);
    IdBuffer ids;
    std::vector<std::size_t> declined;
    py::array_t<std::int64_t> lengths(static_cast<py::ssize_t>(input.views.size()));
    std::int64_t* const length = lengths.mutable_data();
    {
        py::gil_scoped_release release;
        std::unique_ptr<BpeWorkspace> workspace = encoder.take_workspace();
        for (std::size_t i = 0; i < input.views.size(); ++i) {
            const std::size_t before = ids.size();
            const bool done = input.views[i].data() != nullptr && encoder.encode(input.views[i], *workspace, ids);
            if (!done) declined.push_back(i);
            length[i] = static_cast<std::int64_t>(ids.size() - before);
        }
        encoder.give_back(std::move(workspace));
    }
    const auto count = static_cast<py::ssize_t>(ids.size());
    ids.room(1);  // so that there is memory to hand over
    std::int32_t* const memory = ids.release();
    const py::capsule owner(memory, [](void* pointer) { std::free(pointer); });
    return py::make_tuple(py::array_t<std::int32_t>(count, memory, owner), lengths, declined);
}

std::unique_ptr<SentencePieceBpe> make_sentencepiece(const std::vector<std::string>& pieces, const Int32Array& ranks,
                                                     const ByteArray& kinds, const py::dict& flags, const Int32Array& byte_ids,
                                                     const BpeTuning& tuning) {
    SentencePieceSettings settings;
    settings.add_dummy_prefix = flags["add_dummy_prefix"].cast<bool>();
    settings.remove_extra_whitespaces = flags["remove_extra_whitespaces"].cast<bool>();
    settings.escape_whitespaces = flags["escape_whitespaces"].cast<bool>();
    settings.whitespace_as_suffix = flags["treat_whitespace_as_suffix"].cast<bool>();
    settings.unknown_id = flags["unk_id"].cast<std::int32_t>();
    settings.byte_ids = vector_of(byte_ids);
    return std::make_unique<SentencePieceBpe>(views_of(pieces), vector_of(ranks), vector_of(kinds), std::move(settings), tuning);
}

MergeTable table_of_merges(const Int32Array& lengths, const Int32Array& merges) {
    if (merges.ndim() != 2 || merges.shape(1) != 3) throw std::invalid_argument("merges must be rows of left, right, joined");
    std::vector<MergeTable::Pair> pairs;
    for (py::ssize_t i = 0; i < merges.shape(0); ++i) {
        pairs.push_back({merges.at(i, 0), merges.at(i, 1), {static_cast<std::int32_t>(i), merges.at(i, 2)}});
    }
    return MergeTable(vector_of(lengths), pairs);
}

MergeTable table_of_ranks(const TokenList& tokens, std::int32_t vocab_size) {
    std::vector<std::int32_t> units(static_cast<std::size_t>(vocab_size), 1);
    SymbolsByText symbols;
    std::vector<RankedPiece> pieces;
    for (const auto& [text, id] : tokens) {
        if (id < 0 || id >= vocab_size || text.empty()) throw std::invalid_argument("a token is empty or has an id out of range");
        units[static_cast<std::size_t>(id)] = static_cast<std::int32_t>(text.size());
        if (!symbols.emplace(text, id).second) throw std::invalid_argument("two equal tokens");
        pieces.push_back({text, id, id});
    }
    return merges_of_pieces(pieces, symbols, std::move(units), false);
}

ByteLevelSettings byte_level_settings(const py::dict& options, const ByteArray& classes, const Int32Array& byte_symbols) {
    ByteLevelSettings settings;
    const auto family = options["family"].cast<std::string>();
    if (family != "gpt2" && family != "cl100k" && family != "o200k") throw std::invalid_argument("unknown pattern family " + family);
    settings.pattern.family = family == "gpt2"     ? WordPattern::kGpt2
                              : family == "cl100k" ? WordPattern::kCl100k
                                                   : WordPattern::kO200k;
    settings.pattern.contractions = options["contractions"].cast<bool>();
    settings.pattern.max_digits = options["max_digits"].cast<int>();
    settings.pattern.slashes = options["slashes"].cast<bool>();
    settings.pattern.whole_ending = options["whole_ending"].cast<bool>();
    settings.add_prefix_space = options["add_prefix_space"].cast<bool>();
    settings.classes = vector_of(classes);
    if (byte_symbols.size() != 256) throw std::invalid_argument("256 byte symbols are needed");
    std::copy(byte_symbols.data(), byte_symbols.data() + 256, settings.byte_symbols.begin());
    return settings;
}

std::unique_ptr<ByteLevelBpe> make_byte_level(MergeTable table, const py::dict& options, const ByteArray& classes,
                                              const Int32Array& byte_symbols, const TokenList& words,
                                              const std::array<TokenList, 2>& special, const BpeTuning& tuning) {
    ByteLevelSettings settings = byte_level_settings(options, classes, byte_symbols);
    return std::make_unique<ByteLevelBpe>(std::move(table), std::move(settings), views_of(words),
                                          std::array{views_of(special[0]), views_of(special[1])}, tuning);
}

}  // namespace

void bind_bpe(py::module_& module) {
    py::class_<BpeTuning>(module, "BpeTuning", "Sizes that change speed and memory of an encoder, never its result.")
        .def(py::init([](std::size_t window, int cache_bits) { return BpeTuning{window, cache_bits}; }),
             py::arg("window") = BpeTuning().window, py::arg("cache_bits") = BpeTuning().cache_bits);

    py::class_<SentencePieceBpe>(module, "SentencePieceBpe", "SentencePiece BPE with the identity normaliser.")
        .def(py::init(&make_sentencepiece), py::arg("pieces"), py::arg("ranks"), py::arg("kinds"), py::arg("flags"),
             py::arg("byte_ids"), py::arg("tuning") = BpeTuning())
        .def("encode_batch", &encode_batch<SentencePieceBpe>, py::arg("texts"));

    py::class_<ByteLevelBpe>(module, "ByteLevelBpe", "Byte-level BPE with a pre-tokenizer and special tokens.")
        .def_static(
            "from_merges",
            [](const Int32Array& lengths, const Int32Array& merges, const py::dict& options, const ByteArray& classes,
               const Int32Array& byte_symbols, const TokenList& words, const std::array<TokenList, 2>& special,
               const BpeTuning& tuning) {
                return make_byte_level(table_of_merges(lengths, merges), options, classes, byte_symbols, words, special, tuning);
            },
            py::arg("lengths"), py::arg("merges"), py::arg("options"), py::arg("classes"), py::arg("byte_symbols"),
            py::arg("words"), py::arg("special"), py::arg("tuning") = BpeTuning())
        .def_static(
            "from_ranks",
            [](const TokenList& tokens, std::int32_t vocab_size, const py::dict& options, const ByteArray& classes,
               const Int32Array& byte_symbols, const TokenList& special, const BpeTuning& tuning) {
                return make_byte_level(table_of_ranks(tokens, vocab_size), options, classes, byte_symbols, tokens,
                                       {special, TokenList()}, tuning);
            },
            py::arg("tokens"), py::arg("vocab_size"), py::arg("options"), py::arg("classes"), py::arg("byte_symbols"),
            py::arg("special"), py::arg("tuning") = BpeTuning())
        .def("encode_batch", &encode_batch<ByteLevelBpe>, py::arg("texts"));

    module.def(
        "merge_symbols",
        [](const Int32Array& lengths, const Int32Array& merges, const Int32Array& symbols, std::size_t window) {
            const MergeTable table = table_of_merges(lengths, merges);
            std::vector<Symbol> merged = vector_of(symbols);
            for (const Symbol symbol : merged) table.check(symbol);
            merged.resize(Merger(table, window).merge(merged.data(), merged.size()));
            return py::array_t<std::int32_t>(static_cast<py::ssize_t>(merged.size()), merged.data());
        },
        py::arg("lengths"), py::arg("merges"), py::arg("symbols"), py::arg("window"),
        "The bare merging of one sequence by a merge list, for tests of it.");
}

}  // namespace megatron_ext
