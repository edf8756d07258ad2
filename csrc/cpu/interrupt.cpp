#include "interrupt.h"

#include <dlfcn.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <memory>

namespace cl::cpu {
namespace {

// What is needed of Python's stable ABI, looked up at run time: this library links to no Python.
struct Python {
  template <class F>
  static void find(F& function, const char* name) {
    function = reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
  }

  Python() {
    find(is_initialized, "Py_IsInitialized");
    find(ensure, "PyGILState_Ensure");
    find(release, "PyGILState_Release");
    find(check_signals, "PyErr_CheckSignals");
    find(fetch, "PyErr_Fetch");
    find(restore, "PyErr_Restore");
    find(add_pending_call, "Py_AddPendingCall");
  }

  bool runs() const {
    return is_initialized && ensure && release && check_signals && fetch && restore &&
           add_pending_call && is_initialized();
  }

  int (*is_initialized)();
  int (*ensure)();
  void (*release)(int);
  int (*check_signals)();
  void (*fetch)(void**, void**, void**);
  void (*restore)(void*, void*, void*);
  int (*add_pending_call)(int (*)(void*), void*);
};

const Python& python() {
  static const Python found;
  return found;
}

struct Exception {
  void *type, *value, *traceback;
};

int raise(void* kept) {
  const std::unique_ptr<Exception> exception(static_cast<Exception*>(kept));
  python().restore(exception->type, exception->value, exception->traceback);
  return -1;
}

// A C++ exception cannot carry Python's through torch: it becomes a RuntimeError. So Python is
// asked to raise it itself.
void raise_later() {
  auto exception = std::make_unique<Exception>();
  python().fetch(&exception->type, &exception->value, &exception->traceback);
  if (python().add_pending_call(raise, exception.get()) == 0) exception.release();
}

}  // namespace

bool hears_signals() {
  thread_local const bool first = syscall(SYS_gettid) == getpid();
  return first;
}

bool signal_handler_raised() {
  if (!python().runs()) return false;
  const int state = python().ensure();
  const bool raised = python().check_signals() != 0;
  if (raised) raise_later();
  python().release(state);
  return raised;
}

}  // namespace cl::cpu
