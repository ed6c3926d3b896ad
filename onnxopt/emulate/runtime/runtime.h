// The whole runtime, for the one translation unit that holds it. Kernels include kernel.h alone.
#pragma once

#include "run.h"
