// CodePointMap: a symbol for each code point, in pages that are only made where a symbol is set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "merge_table.h"

namespace megatron_ext {

class CodePointMap {
public:
    // other: the symbol of all code points that none is set for.
    explicit CodePointMap(Symbol other) : pages_(0x110000 / kPageSize, 0), symbols_(kPageSize, other) {}

    Symbol operator[](std::uint32_t code) const { return symbols_[pages_[code / kPageSize] * kPageSize + code % kPageSize]; }

    void set(std::uint32_t code, Symbol symbol) {
        std::uint16_t& page = pages_[code / kPageSize];
        if (page == 0) {
            page = static_cast<std::uint16_t>(symbols_.size() / kPageSize);
            symbols_.resize(symbols_.size() + kPageSize, symbols_[0]);
        }
        symbols_[page * kPageSize + code % kPageSize] = symbol;
    }

private:
    static constexpr std::size_t kPageSize = 256;

    std::vector<std::uint16_t> pages_;  // of a code point; page 0 has none that is set
    std::vector<Symbol> symbols_;
};

}  // namespace megatron_ext
