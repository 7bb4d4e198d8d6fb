#include "files.h"

#include <pybind11/stl.h>

#include <cerrno>
#include <string>

#include "../io/background.h"
#include "../io/system.h"
#include "host_pool.h"

namespace py = pybind11;

namespace warpmerge {
namespace {

// The watcher of the calls to files: a function of Python, or none.
py::object watching;

int64_t ask_watcher(const char* call, int fd, int64_t offset, int64_t bytes, const void* data) {
  py::gil_scoped_acquire acquire;
  if (!watching) return 0;
  const py::object written = data ? py::object(py::bytes(static_cast<const char*>(data), size_t(bytes))) : py::none();
  try {
    return watching(call, fd, offset, bytes, written).cast<int64_t>();
  } catch (py::error_already_set& error) {
    error.discard_as_unraisable("a watcher of calls to files");
    return EIO;
  }
}

void watch(const py::object& callback) {
  system::watch(callback.is_none() ? nullptr : &ask_watcher);
  watching = callback.is_none() ? py::object() : callback;
}

std::shared_ptr<File> file_at(const py::bytes& path, const File::Identity& identity) {
  return threaded(new File(std::string(path), identity));
}

py::bytes read_bytes(File& file, int64_t offset, int64_t bytes) {
  PyObject* made = PyBytes_FromStringAndSize(nullptr, bytes);
  if (!made) throw py::error_already_set();
  const py::bytes found = py::reinterpret_steal<py::bytes>(made);
  char* data = PyBytes_AS_STRING(made);
  py::gil_scoped_release release;
  file.read(data, size_t(bytes), offset);
  return found;
}

void write_bytes(File& file, const py::buffer& data, int64_t offset) {
  const py::buffer_info info = data.request();
  if (info.ndim != 1 || info.strides[0] != info.itemsize)
    throw py::value_error("data are a contiguous buffer of bytes");
  py::gil_scoped_release release;
  file.write(info.ptr, size_t(info.size * info.itemsize), offset);
}

// Makes the exception of Python for (errno, reason, path) of an input that could not be read.
py::object input_error;

void raise_os_error(const std::system_error& error) {
  const auto* input = dynamic_cast<const InputError*>(&error);
  if (!input || !input_error) {
    errno = error.code().value();
    PyErr_SetFromErrno(PyExc_OSError);
    return;
  }
  try {
    const auto path = py::reinterpret_steal<py::object>(PyUnicode_DecodeFSDefault(input->path.c_str()));
    const py::object made = input_error(error.code().value(), input->why, path);
    PyErr_SetObject(py::type::handle_of(made).ptr(), made.ptr());
  } catch (py::error_already_set& failed) {
    failed.restore();
  }
}

}  // namespace

void bind_files(py::module_& m) {
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const std::system_error& e) {
      raise_os_error(e);
    }
  });
  m.def(
      "watch", &watch, py::arg("callback"),
      "Has (call, fd, offset, bytes, data) asked before each call to a file; None ends it. The answer is 0, an errno, "
      "or -n for n bytes only. For tests.");
  m.def(
      "on_input_error", [](py::object make) { input_error = std::move(make); }, py::arg("make"),
      "Has make(errno, reason, path) make the exception for an input that cannot be read; ESTALE: it has changed.");
  // When the interpreter ends, nobody may ask it any more.
  py::module_::import("atexit").attr("register")(py::cpp_function([] {
    watch(py::none());
    input_error = py::object();
  }));

  using Unlocked = py::call_guard<py::gil_scoped_release>;
  py::class_<File, std::shared_ptr<File>>(m, "File", "An open file, or one that is opened when it is read.")
      .def(py::init([](int fd) { return threaded(new File(fd)); }), py::arg("fd"), "Takes over a descriptor.")
      .def(py::init(&file_at), py::arg("path"), py::arg("identity"),
           "The file of this path (bytes); it must be the one with this identity whenever it is opened.")
      .def_property_readonly("fd", &File::fd, "The descriptor that was taken over, -1 after close.")
      .def("read", &read_bytes, py::arg("offset"), py::arg("bytes"))
      .def("write", &write_bytes, py::arg("data"), py::arg("offset"))
      .def("close", &File::close, Unlocked())
      .def("put_away", &File::put_away, Unlocked(), "Closes it until it is read again.")
      .def_static("limit_open", &File::limit_open, py::arg("count"), Unlocked(),
                  "How many files of paths are open at once, at most.");
  py::class_<Background, std::shared_ptr<Background>>(m, "Background")
      .def(py::init([] { return threaded(new Background()); }))
      .def("read_ahead", &Background::read_ahead, py::arg("file"), py::arg("offset"), py::arg("bytes"));
}

}  // namespace warpmerge
