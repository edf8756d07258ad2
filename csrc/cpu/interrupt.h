// Signals that Python has received during a call: nobody else would look at them before its end.
#pragma once

namespace cl::cpu {

// True if this thread is the one that hears signals: a process's first.
bool hears_signals();

// Runs the handlers of signals that have come. True if one raised: the call should end, and Python
// raises the handler's exception as soon as it runs again. To be asked by a thread that hears
// signals. Without Python in the process nothing is ever raised.
bool signal_handler_raised();

}  // namespace cl::cpu
