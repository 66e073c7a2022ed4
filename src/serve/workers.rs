//! [`Workers`]: the threads that carry out what would make a connection's own thread wait.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::error::{Error, Result};

/// A pool of threads and its queue. The queue needs no bound of its own: every job holds a credit of
/// its connection, and connections are limited.
pub(super) struct Workers<J> {
    shared: Arc<Shared<J>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared<J> {
    queue: Mutex<Queue<J>>,
    arrived: Condvar,
}

struct Queue<J> {
    jobs: VecDeque<J>,
    stopping: bool,
    /// Threads that wait for a job. To wake nobody costs a system call too.
    idle: usize,
}

impl<J: FnOnce() + Send + 'static> Workers<J> {
    /// Starts `count` threads.
    pub(super) fn start(count: usize) -> Result<Self> {
        let queue = Mutex::new(Queue { jobs: VecDeque::new(), stopping: false, idle: 0 });
        let shared = Arc::new(Shared { queue, arrived: Condvar::new() });
        let mut workers = Self { shared, threads: Vec::with_capacity(count) };
        for number in 0..count {
            let shared = Arc::clone(&workers.shared);
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            let spawned = thread.spawn(move || {
                while let Some(job) = shared.next() {
                    job();
                }
            });
            workers.threads.push(spawned.map_err(|e| Error::io("cannot start a worker thread", e))?);
        }
        Ok(workers)
    }

    /// Queues a job. A job must not panic.
    pub(super) fn submit(&self, job: J) {
        let mut queue = self.shared.lock();
        queue.jobs.push_back(job);
        let somebody_waits = queue.idle > 0;
        drop(queue);
        if somebody_waits {
            self.shared.arrived.notify_one();
        }
    }
}

impl<J> Shared<J> {
    /// The next job, waited for; `None` when the pool stops and the queue is empty.
    fn next(&self) -> Option<J> {
        let mut queue = self.lock();
        while queue.jobs.is_empty() && !queue.stopping {
            queue.idle += 1;
            queue = self.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
        queue.jobs.pop_front()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue<J>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J> Drop for Workers<J> {
    /// Lets the queue run empty and ends the threads. A job may hold the last handle to its pool: the
    /// thread that runs it cannot wait for itself.
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.arrived.notify_all();
        let this = std::thread::current().id();
        for thread in self.threads.drain(..).filter(|thread| thread.thread().id() != this) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_ends_also_when_its_own_thread_drops_it_last() {
        type Job = Box<dyn FnOnce() + Send>;
        let workers: Arc<Workers<Job>> = Arc::new(Workers::start(2).unwrap());
        let held = Arc::clone(&workers);
        let (started, has_started) = std::sync::mpsc::channel();
        let (dropped, has_dropped) = std::sync::mpsc::channel();
        let (go, may_go) = std::sync::mpsc::channel::<()>();
        workers.submit(Box::new(move || {
            started.send(()).unwrap();
            may_go.recv().unwrap();
            drop(held);
            dropped.send(()).unwrap();
        }));
        has_started.recv().unwrap();
        drop(workers);
        go.send(()).unwrap();
        has_dropped.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
    }
}
