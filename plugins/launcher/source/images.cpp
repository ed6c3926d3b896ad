#include "images.h"

#include <cstring>

#include "fields.h"

namespace onnxopt {

namespace {

constexpr char magic[] = "ONNXOPTK";
constexpr std::size_t header_size = 16;
constexpr std::size_t record_size = 32;
constexpr std::size_t most_images = 256;
constexpr std::size_t alignment = 16;

uint64_t read(std::vector<uint8_t> const &code, std::size_t place, std::size_t size) {
    uint64_t value = 0;
    for (std::size_t i = 0; i < size; ++i) {
        value |= static_cast<uint64_t>(code[place + i]) << (8 * i);
    }
    return value;
}

std::string architecture_name(Image const &image) {
    std::string name = image.kind == ImageKind::ptx ? "PTX for sm_" : "sm_";
    name += std::to_string(image.architecture);
    if (image.suffix != 0) {
        name += image.suffix;
    }
    return name;
}

void check_image(std::vector<uint8_t> const &code, Image const &image, std::size_t kernels) {
    if (image.kernel >= kernels) {
        throw Refusal("'code' has an image of kernel " + std::to_string(image.kernel) + ", but there are " +
                      std::to_string(kernels));
    }
    if (image.offset > code.size() || image.size > code.size() - image.offset || image.size < 4 ||
        image.offset % alignment != 0) {
        throw Refusal("'code' has an image from " + std::to_string(image.offset) + " with " +
                      std::to_string(image.size) + " bytes; the field has " + std::to_string(code.size()));
    }
    uint8_t const *first = code.data() + image.offset;
    if (image.kind == ImageKind::cubin && std::memcmp(first, "\x7f" "ELF", 4) != 0) {
        throw Refusal("'code' has machine code for " + architecture_name(image) + " that is no ELF file");
    }
    if (image.kind == ImageKind::ptx && std::memchr(first, 0, image.size) != first + image.size - 1) {
        throw Refusal("'code' has PTX that does not end with its only zero byte");
    }
}

Image read_image(std::vector<uint8_t> const &code, std::size_t place) {
    uint64_t const kind = read(code, place + 4, 4);
    uint64_t const suffix = read(code, place + 12, 4);
    uint64_t const architecture = read(code, place + 8, 4);
    if (kind > 1 || (suffix != 0 && suffix != 'a' && suffix != 'f') || architecture < 10 || architecture > 999) {
        throw Refusal("'code' has an image of kind " + std::to_string(kind) + " for architecture " +
                      std::to_string(architecture) + " with suffix " + std::to_string(suffix) +
                      "; allowed: kind 0 or 1, architecture 10 to 999, suffix none, a or f");
    }
    return {
        static_cast<uint32_t>(read(code, place, 4)),
        static_cast<ImageKind>(kind),
        static_cast<uint32_t>(architecture),
        static_cast<char>(suffix),
        static_cast<std::size_t>(read(code, place + 16, 8)),
        static_cast<std::size_t>(read(code, place + 24, 8)),
    };
}

// Machine code of an embedded GPU runs on no other one of its generation, and theirs not on it.
bool embedded(uint32_t architecture) { return architecture == 72 || architecture == 87 || architecture == 88; }

// How well an image suits a GPU: 0 not at all, otherwise the more the better.
uint32_t suitability(Image const &image, uint32_t capability) {
    bool const exact = image.architecture == capability;
    bool const older = image.architecture < capability;
    bool const generation = image.architecture / 10 == capability / 10;
    if (image.suffix == 'a' && !exact) {
        return 0;
    }
    if (image.kind == ImageKind::ptx) {
        bool const runs = exact || (older && (image.suffix == 0 || generation));
        return runs ? image.architecture : 0;
    }
    if (exact) {
        return image.suffix == 'a' ? 4000 : 3000;
    }
    bool const runs = older && generation && !embedded(image.architecture) && !embedded(capability);
    return runs ? 2000 + image.architecture : 0;
}

}  // namespace

std::vector<Image> read_images(std::vector<uint8_t> const &code, std::size_t kernels) {
    if (code.size() < header_size || std::memcmp(code.data(), magic, 8) != 0) {
        throw Refusal("'code' does not begin as a field with kernels does");
    }
    uint64_t const version = read(code, 8, 4);
    uint64_t const count = read(code, 12, 4);
    if (version != 1) {
        throw Refusal("'code' has version " + std::to_string(version) +
                      ", expected 1; a newer launcher library is needed");
    }
    if (count < 1 || count > most_images || code.size() - header_size < count * record_size) {
        throw Refusal("'code' says that it has " + std::to_string(count) + " images; allowed: 1 to " +
                      std::to_string(most_images) + ", all within its " + std::to_string(code.size()) + " bytes");
    }
    std::vector<Image> images;
    std::vector<bool> present(kernels, false);
    for (std::size_t i = 0; i < count; ++i) {
        Image const image = read_image(code, header_size + i * record_size);
        check_image(code, image, kernels);
        present[image.kernel] = true;
        images.push_back(image);
    }
    for (std::size_t kernel = 0; kernel < kernels; ++kernel) {
        if (!present[kernel]) {
            throw Refusal("'code' has no image of kernel " + std::to_string(kernel));
        }
    }
    return images;
}

Image const &image_for(std::vector<Image> const &images, std::size_t kernel, uint32_t capability) {
    Image const *best = nullptr;
    std::string present;
    for (Image const &image : images) {
        if (image.kernel != kernel) {
            continue;
        }
        present += (present.empty() ? "" : ", ") + architecture_name(image);
        uint32_t const suits = suitability(image, capability);
        if (suits > (best == nullptr ? 0 : suitability(*best, capability))) {
            best = &image;
        }
    }
    if (best == nullptr) {
        throw Refusal("this GPU has compute capability " + std::to_string(capability / 10) + "." +
                      std::to_string(capability % 10) + ", but the engine has kernels for " + present +
                      " alone; optimize the model for sm_" + std::to_string(capability) +
                      " and build the engine again");
    }
    return *best;
}

}  // namespace onnxopt
