//! [`Scheduler`]: who decides which task goes on, and how a thread is given one.

use std::cell::RefCell;
use std::rc::Rc;

/// Decides which of several tasks on one thread goes on, wherever one of them meets what they share.
/// Locks and condition variables are told apart by their addresses.
pub trait Scheduler {
    /// The present task is about to do what others can notice: they may come first.
    fn point(&self);
    /// The present task is going to [sleep](Self::sleep) until `what` is [released](Self::release).
    /// Other tasks do not come in between.
    fn enlist(&self, what: usize);
    /// Waits for what the present task enlisted for, if that has not been released already. It may also
    /// return for no reason.
    fn sleep(&self);
    /// Those who enlisted for `what` may go on.
    fn release(&self, what: usize);
}

thread_local! {
    static SCHEDULER: RefCell<Option<Rc<dyn Scheduler>>> = const { RefCell::new(None) };
}

/// Takes the scheduler away when it is dropped.
struct Present;

impl Drop for Present {
    fn drop(&mut self) {
        SCHEDULER.set(None);
    }
}

/// Has this thread be under `scheduler` while `work` runs.
pub fn under<T>(scheduler: Rc<dyn Scheduler>, work: impl FnOnce() -> T) -> T {
    SCHEDULER.set(Some(scheduler));
    let _present = Present;
    work()
}

/// The thread's scheduler. A task that has panicked has none: it only cleans up.
pub(super) fn present() -> Option<Rc<dyn Scheduler>> {
    if std::thread::panicking() { None } else { SCHEDULER.with_borrow(Clone::clone) }
}

/// Lets the thread's scheduler, if it has one, go on with another task.
pub fn point() {
    if let Some(scheduler) = present() {
        scheduler.point();
    }
}
