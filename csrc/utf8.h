// Reading UTF-8 that is known to be valid (it comes from Python's own encoder).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace megatron_ext {

// Bytes of the character that begins with `lead`.
inline std::size_t utf8_length(std::uint8_t lead) { return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4; }

// The code point at `text`, which is moved behind it.
inline std::uint32_t next_code_point(const std::uint8_t*& text) {
    const std::uint32_t lead = *text++;
    if (lead < 0x80) return lead;
    std::uint32_t code = *text++ & 0x3FU;
    if (lead < 0xE0) return ((lead & 0x1FU) << 6) | code;
    code = (code << 6) | (*text++ & 0x3FU);
    if (lead < 0xF0) return ((lead & 0x0FU) << 12) | code;
    code = (code << 6) | (*text++ & 0x3FU);
    return ((lead & 0x07U) << 18) | code;
}

inline const std::uint8_t* bytes_of(std::string_view text) { return reinterpret_cast<const std::uint8_t*>(text.data()); }

}  // namespace megatron_ext
