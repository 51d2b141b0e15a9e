# The CUDA kernels: optional, one library without torch or Python, which the package loads at run time.
set(UDSE_CUDA AUTO CACHE STRING "CUDA kernels: AUTO builds them where a CUDA compiler works, ON, OFF")
set_property(CACHE UDSE_CUDA PROPERTY STRINGS AUTO ON OFF)

if(NOT UDSE_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER AND UDSE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "UDSE_CUDA=ON needs a CUDA compiler: install the CUDA toolkit or set CMAKE_CUDA_COMPILER")
  endif()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND DEFINED ENV{CUDAARCHS})
  set(CMAKE_CUDA_ARCHITECTURES $ENV{CUDAARCHS})
elseif(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 90)  # T4, A100, RTX 30, H100 and, by its PTX, newer ones
endif()

# Sets UDSE_CUDA_WORKS: whether the compiler takes the architectures, and the host's compiler. A project of its own, as
# enable_language would end this one.
function(udse_try_cuda)
  set(trial ${CMAKE_CURRENT_BINARY_DIR}/cuda_trial)
  file(WRITE ${trial}/CMakeLists.txt
    "cmake_minimum_required(VERSION 3.25)\nproject(trial LANGUAGES CUDA)\nadd_library(trial STATIC trial.cu)\n")
  file(WRITE ${trial}/trial.cu
    "#include <cmath>\n#include <cuda_fp16.h>\n__global__ void one(__half* x) { *x = __float2half(1.0f); }\n")
  execute_process(
    COMMAND ${CMAKE_COMMAND} -S ${trial} -B ${trial}/build -G ${CMAKE_GENERATOR}
      -DCMAKE_MAKE_PROGRAM=${CMAKE_MAKE_PROGRAM} -DCMAKE_CUDA_COMPILER=${CMAKE_CUDA_COMPILER}
      "-DCMAKE_CUDA_ARCHITECTURES=${CMAKE_CUDA_ARCHITECTURES}" "-DCMAKE_CUDA_FLAGS=${CMAKE_CUDA_FLAGS}"
    RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET)
  if(failed EQUAL 0)
    execute_process(COMMAND ${CMAKE_COMMAND} --build ${trial}/build RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET)
  endif()
  if(failed EQUAL 0)
    set(UDSE_CUDA_WORKS TRUE CACHE INTERNAL "The CUDA compiler takes the architectures")
  endif()
endfunction()

set(build_cuda OFF)
if(CMAKE_CUDA_COMPILER AND UDSE_CUDA STREQUAL "ON")
  set(build_cuda ON)
elseif(CMAKE_CUDA_COMPILER AND UDSE_CUDA STREQUAL "AUTO")
  if(NOT UDSE_CUDA_WORKS)
    udse_try_cuda()
  endif()
  if(UDSE_CUDA_WORKS)
    set(build_cuda ON)
  else()
    message(STATUS "${CMAKE_CUDA_COMPILER} does not compile for ${CMAKE_CUDA_ARCHITECTURES}; UDSE_CUDA=ON shows why")
  endif()
endif()

if(build_cuda)
  enable_language(CUDA)
  # All kernels in one unit: the CUDA headers are read once per architecture
  set(sources "")
  foreach(operation complex_normal predictor_corrector posterior_step nmf_is compression fused_layers convolution)
    string(APPEND sources "#include \"${CMAKE_CURRENT_SOURCE_DIR}/kernels/${operation}/${operation}.cu\"\n")
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS kernels/${operation}/${operation}.cu)
  endforeach()
  file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/udse_cuda.cu CONTENT "${sources}" @ONLY)
  add_library(udse_cuda MODULE ${CMAKE_CURRENT_BINARY_DIR}/udse_cuda.cu)
  target_include_directories(udse_cuda PRIVATE csrc)
  set_target_properties(udse_cuda PROPERTIES
    CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_RUNTIME_LIBRARY Static CUDA_VISIBILITY_PRESET hidden)
  if(SKBUILD)
    install(TARGETS udse_cuda DESTINATION udse_fast)
  endif()
  message(STATUS "CUDA kernels for ${CMAKE_CUDA_ARCHITECTURES}")
else()
  message(STATUS "No CUDA kernels (UDSE_CUDA=${UDSE_CUDA})")
endif()
