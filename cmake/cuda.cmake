# The CUDA kernels: optional, one library without torch or Python, which the package loads at run time.
set(UDSE_CUDA AUTO CACHE STRING "CUDA kernels: AUTO builds them where there is a CUDA compiler, ON, OFF")
set_property(CACHE UDSE_CUDA PROPERTY STRINGS AUTO ON OFF)

if(NOT UDSE_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER AND UDSE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "UDSE_CUDA=ON needs a CUDA compiler: install the CUDA toolkit or set CMAKE_CUDA_COMPILER")
  endif()
endif()

if(CMAKE_CUDA_COMPILER AND NOT UDSE_CUDA STREQUAL "OFF")
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 90)  # T4, A100, RTX 30, H100 and, by its PTX, newer ones
  endif()
  enable_language(CUDA)
  # All kernels in one unit: the CUDA headers are read once per architecture
  set(sources "")
  foreach(operation complex_normal predictor_corrector posterior_step nmf_is compression network_input
                    fused_layers)
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
