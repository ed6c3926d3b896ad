// The machine code and PTX of a plugin's kernels, and which of them a GPU can run.
#ifndef ONNXOPT_LAUNCHER_IMAGES_H
#define ONNXOPT_LAUNCHER_IMAGES_H

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace onnxopt {

enum class ImageKind : uint32_t { cubin = 0, ptx = 1 };

// Code of one kernel for one architecture. `architecture` is 90 for sm_90, `suffix` the letter behind it or 0. Offset
// and size lie within the field that it was read from.
struct Image {
    uint32_t kernel;
    ImageKind kind;
    uint32_t architecture;
    char suffix;
    std::size_t offset;
    std::size_t size;
};

// The images of a field, all of them within it. Throws Refusal where the field is anything else, or a kernel has none.
//
// The field: "ONNXOPTK", the version 1 and the number of images; for each image kernel, kind, architecture and suffix,
// then offset and size; all little-endian, 4 bytes each but for the last two, which have 8. Images begin at multiples
// of 16; PTX ends with a zero byte.
std::vector<Image> read_images(std::vector<uint8_t> const &code, std::size_t kernels);

// The image of a kernel for a GPU of a compute capability such as 89: its own machine code, machine code of an older
// GPU of its generation, or PTX, in this order. Throws Refusal where none runs there.
Image const &image_for(std::vector<Image> const &images, std::size_t kernel, uint32_t capability);

}  // namespace onnxopt

#endif
