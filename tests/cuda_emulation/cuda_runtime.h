// Stands in for the CUDA toolkit's header of this name: with this directory first on the include path, the sources of
// warpmerge._cuda are C++17 that g++ compiles, and their kernels run on the CPU.
#pragma once

#include "api.h"
#include "fibers.h"
#include "intrinsics.h"
#include "types.h"
