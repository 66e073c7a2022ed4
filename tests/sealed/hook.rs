//! What else happens on the machine between two writes of a commit or checkpoint: other requests.

use std::cell::RefCell;

type Hook = Box<dyn FnMut()>;

thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// Has `hook` run after every write to a simulated disk of this thread while `work` runs, its own writes
/// excepted.
pub(crate) fn during<T>(hook: impl FnMut() + 'static, work: impl FnOnce() -> T) -> T {
    HOOK.set(Some(Box::new(hook)));
    let result = work();
    HOOK.set(None);
    result
}

/// Runs the hook, if there is one.
pub(crate) fn run() {
    if let Some(mut hook) = HOOK.take() {
        hook();
        HOOK.set(Some(hook));
    }
}
