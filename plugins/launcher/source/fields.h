// The fields that a plugin is created from: their names and types, and reading them without trusting any of them.
#ifndef ONNXOPT_LAUNCHER_FIELDS_H
#define ONNXOPT_LAUNCHER_FIELDS_H

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace onnxopt {

// What was wrong with what somebody gave: the text says what was found and what is allowed.
class Refusal : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

enum class FieldType { int32, text, bytes, other };

// A field as it comes in: nothing about it is known to be true but that `length` entries can be read.
struct Field {
    char const *name;
    FieldType type;
    void const *data;
    int32_t length;
};

struct FieldRule {
    char const *name;
    FieldType type;
};

constexpr std::size_t field_count = 10;

// All fields in the order in which the checksum, the last one, runs over those in front of it.
extern std::array<FieldRule, field_count> const field_rules;

// Copies of the contents of all fields, in the order of the rules. Texts end with a zero byte.
using Contents = std::array<std::vector<uint8_t>, field_count>;

// Throws Refusal for a field that is missing, unknown, there twice, of another type, empty or too long, and for
// contents that are not those of the checksum.
Contents checked_contents(std::vector<Field> const &fields);

// Numbers and texts of a field by its name.
std::vector<int32_t> numbers(Contents const &contents, char const *name);
std::string text(Contents const &contents, char const *name);
std::vector<uint8_t> const &bytes(Contents const &contents, char const *name);

// CRC-32 over names (with the zero behind them), lengths (8 bytes, little-endian) and contents of all fields but the
// last, as 8 hexadecimal digits.
std::string checksum(Contents const &contents);

// Text from somebody else for a message: printable, and not longer than a line.
std::string quoted(std::string const &value);

}  // namespace onnxopt

#endif
