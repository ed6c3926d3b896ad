#include "fields.h"

#include <cstring>

namespace onnxopt {

std::array<FieldRule, field_count> const field_rules{{
    {"format", FieldType::int32},
    {"operator", FieldType::text},
    {"inputs", FieldType::int32},
    {"outputs", FieldType::int32},
    {"workspace", FieldType::int32},
    {"entries", FieldType::text},
    {"launches", FieldType::int32},
    {"arguments", FieldType::int32},
    {"code", FieldType::bytes},
    {"checksum", FieldType::text},
}};

namespace {

constexpr int32_t longest_text = 4096;
constexpr int32_t most_numbers = 1 << 16;
constexpr int32_t most_bytes = 1 << 30;

std::string type_name(FieldType type) {
    switch (type) {
        case FieldType::int32: return "int32";
        case FieldType::text: return "text";
        case FieldType::bytes: return "int8";
        case FieldType::other: break;
    }
    return "of another type";
}

int32_t most_entries(FieldType type) {
    if (type == FieldType::int32) {
        return most_numbers;
    }
    return type == FieldType::text ? longest_text : most_bytes;
}

std::size_t index_of(char const *name) {
    for (std::size_t i = 0; i < field_count; ++i) {
        if (std::strcmp(field_rules[i].name, name) == 0) {
            return i;
        }
    }
    throw Refusal("the field " + quoted(name) + " is unknown; this library is older than what made the engine");
}

void check_field(Field const &field, FieldRule const &rule) {
    std::string const label = std::string("the field '") + rule.name + "' ";
    if (field.type != rule.type) {
        throw Refusal(label + "is " + type_name(field.type) + ", expected " + type_name(rule.type));
    }
    int32_t const most = most_entries(rule.type);
    if (field.data == nullptr || field.length < 1 || field.length > most) {
        throw Refusal(
            label + "has " + (field.data == nullptr ? "no data" : std::to_string(field.length) + " entries") +
            ", expected 1 to " + std::to_string(most));
    }
}

// A parser hands a text over with the zero behind it, others may not: what counts is in front of it.
std::vector<uint8_t> copied(Field const &field, FieldRule const &rule) {
    auto const *first = static_cast<uint8_t const *>(field.data);
    std::size_t const size = static_cast<std::size_t>(field.length) * (rule.type == FieldType::int32 ? 4 : 1);
    std::vector<uint8_t> content(first, first + size);
    if (rule.type != FieldType::text) {
        return content;
    }
    if (content.back() != 0) {
        content.push_back(0);
    }
    if (std::strlen(reinterpret_cast<char const *>(content.data())) + 1 != content.size()) {
        throw Refusal(std::string("the field '") + rule.name + "' has a zero byte within its text");
    }
    return content;
}

constexpr std::array<uint32_t, 256> remainders() {
    std::array<uint32_t, 256> table{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
        uint32_t rest = byte;
        for (int bit = 0; bit < 8; ++bit) {
            rest = (rest >> 1) ^ ((rest & 1) != 0 ? UINT32_C(0xedb88320) : 0);
        }
        table[byte] = rest;
    }
    return table;
}

// CRC-32 as zlib computes it, from the complement of what it is so far.
void add(uint32_t &rest, void const *data, std::size_t size) {
    static constexpr std::array<uint32_t, 256> table = remainders();
    auto const *byte = static_cast<uint8_t const *>(data);
    for (std::size_t i = 0; i < size; ++i) {
        rest = (rest >> 8) ^ table[(rest ^ byte[i]) & 255];
    }
}

}  // namespace

std::string quoted(std::string const &value) {
    std::string shown;
    for (char const c : value.substr(0, 80)) {
        shown += c >= 32 && c < 127 ? c : '?';
    }
    return "'" + shown + "'";
}

Contents checked_contents(std::vector<Field> const &fields) {
    Contents contents;
    for (Field const &field : fields) {
        if (field.name == nullptr) {
            throw Refusal("a field has no name");
        }
        std::size_t const place = index_of(field.name);
        if (!contents[place].empty()) {
            throw Refusal(std::string("the field '") + field_rules[place].name + "' is there twice");
        }
        check_field(field, field_rules[place]);
        contents[place] = copied(field, field_rules[place]);
    }
    for (std::size_t i = 0; i < field_count; ++i) {
        if (contents[i].empty()) {
            throw Refusal(std::string("the field '") + field_rules[i].name + "' is missing");
        }
    }
    std::string const expected = text(contents, "checksum");
    std::string const found = checksum(contents);
    if (found != expected) {
        throw Refusal(
            "the fields are damaged: their checksum is " + found + ", expected " + quoted(expected) +
            "; make the model or the engine again");
    }
    return contents;
}

std::vector<int32_t> numbers(Contents const &contents, char const *name) {
    std::vector<uint8_t> const &content = contents[index_of(name)];
    std::vector<int32_t> values(content.size() / 4);
    std::memcpy(values.data(), content.data(), values.size() * 4);
    return values;
}

std::string text(Contents const &contents, char const *name) {
    return reinterpret_cast<char const *>(contents[index_of(name)].data());
}

std::vector<uint8_t> const &bytes(Contents const &contents, char const *name) { return contents[index_of(name)]; }

std::string checksum(Contents const &contents) {
    uint32_t rest = UINT32_C(0xffffffff);
    for (std::size_t i = 0; i + 1 < field_count; ++i) {
        add(rest, field_rules[i].name, std::strlen(field_rules[i].name) + 1);
        uint64_t const size = contents[i].size();
        uint8_t length[8];
        for (int byte = 0; byte < 8; ++byte) {
            length[byte] = static_cast<uint8_t>(size >> (8 * byte));
        }
        add(rest, length, sizeof length);
        add(rest, contents[i].data(), contents[i].size());
    }
    static char const digits[] = "0123456789abcdef";
    std::string written;
    for (int shift = 28; shift >= 0; shift -= 4) {
        written += digits[(~rest >> shift) & 15];
    }
    return written;
}

}  // namespace onnxopt
