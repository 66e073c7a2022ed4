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

thread_local! {
    static AT_READ: RefCell<Option<(u64, Hook)>> = const { RefCell::new(None) };
}

/// Has `hook` run once, before the next read of `block` from a simulated disk of this thread.
pub(crate) fn at_read(block: u64, hook: impl FnOnce() + 'static) {
    let mut hook = Some(hook);
    let once = move || {
        if let Some(hook) = hook.take() {
            hook();
        }
    };
    AT_READ.set(Some((block, Box::new(once))));
}

/// Runs the hook for a read of `block`, if there is one; whether there was.
pub(crate) fn reading(block: u64) -> bool {
    let here = AT_READ.with_borrow(|hook| hook.as_ref().is_some_and(|(at, _)| *at == block));
    if here && let Some((_, mut hook)) = AT_READ.take() {
        hook();
    }
    here
}

/// Runs the hook, if there is one.
pub(crate) fn run() {
    if let Some(mut hook) = HOOK.take() {
        hook();
        HOOK.set(Some(hook));
    }
}
