// What tests can ask of the emulated driver, as functions of the module warpmerge._cuda_emulated.
#pragma once

#include <pybind11/pybind11.h>

#include "driver.h"

inline void bind_emulation(pybind11::module_& m) {
  namespace py = pybind11;
  using cuda_emulation::Driver;
  using Lock = std::lock_guard<std::recursive_mutex>;

  m.attr("EMULATED") = true;
  m.def(
      "reset",
      [] {
        Driver& driver = Driver::get();
        const Lock lock(driver.mutex);
        driver.drain_all();
        static_cast<cuda_emulation::Settings&>(driver) = {};
        driver.sticky = cudaSuccess;
        cuda_emulation::reverse_order = false;
      },
      "Undoes what the functions below have set, and forgets errors.", py::call_guard<py::gil_scoped_release>());
  m.def(
      "limit_memory",
      [](size_t bytes) {
        Driver& driver = Driver::get();
        const Lock lock(driver.mutex);
        driver.memory_limit = bytes;
      },
      py::arg("nbytes"), "Bytes of memory of every device.");
  m.def(
      "set_device_count",
      [](int count) {
        if (count < 0 || count > Driver::kMaxDevices) throw py::value_error("at most 16 devices are emulated");
        Driver& driver = Driver::get();
        const Lock lock(driver.mutex);
        driver.devices = count;
      },
      py::arg("count"));
  m.def(
      "set_capability",
      [](int major, int minor) {
        Driver& driver = Driver::get();
        const Lock lock(driver.mutex);
        driver.major = major;
        driver.minor = minor;
      },
      py::arg("major"), py::arg("minor"));
  m.def(
      "set_driver_version",
      [](int major, int minor) {
        Driver& driver = Driver::get();
        const Lock lock(driver.mutex);
        driver.version = 1000 * major + 10 * minor;
      },
      py::arg("major"), py::arg("minor"), "0, 0: no driver.");
  m.def(
      "fail_next_allocations",
      [](int64_t device_memory, int64_t pinned) {
        Driver& driver = Driver::get();
        const Lock lock(driver.mutex);
        driver.failing_allocations = device_memory;
        driver.failing_pinned = pinned;
      },
      py::arg("count"), py::arg("pinned") = 0);
  m.def(
      "defer",
      [](bool deferred) {
        Driver& driver = Driver::get();
        const Lock lock(driver.mutex);
        driver.drain_all();
        driver.deferred = deferred;
      },
      py::arg("deferred"), "Whether work waits in its stream for as long as the API allows.",
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "reverse_order", [](bool reverse) { cuda_emulation::reverse_order = reverse; }, py::arg("reverse"),
      "Whether threads and blocks run from the last to the first.");
  m.def(
      "live",
      [] {
        Driver& driver = Driver::get();
        const Lock lock(driver.mutex);
        return py::make_tuple(driver.allocations.size(), driver.pinned.size(), driver.streams.size(),
                              driver.events.size());
      },
      "Numbers of device allocations, page-locked ones, streams and events.");
}
