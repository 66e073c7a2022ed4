//! Tasks that follow one another on one thread: which goes on, wherever they meet, follows from a seed.
//!
//! Stacks, sleeping and deadlocks are shuttle's. Its own locks are not used: they work nowhere else, and
//! the engine's do, under `hostveil::sync`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Mutex;
use std::time::Duration;

use hostveil::sync::{Scheduler, under};
use shuttle::scheduler::{Schedule, Task, TaskId};
use shuttle::thread::Thread;
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use crate::random::Random;

/// What a task does.
pub(crate) type Work = Box<dyn FnOnce() + Send>;

/// Turns after which tasks are said to get nowhere.
const MOST_STEPS: usize = 300_000;

/// The engine's scheduler, in terms of shuttle's threads.
#[derive(Default)]
struct Turns {
    enlisted: RefCell<HashMap<usize, Vec<Thread>>>,
}

impl Scheduler for Turns {
    fn point(&self) {
        // There is no time, only the turn that somebody else may get.
        shuttle::thread::sleep(Duration::ZERO);
    }

    fn enlist(&self, what: usize) {
        self.enlisted.borrow_mut().entry(what).or_default().push(shuttle::thread::current());
    }

    fn sleep(&self) {
        shuttle::thread::park();
    }

    fn release(&self, what: usize) {
        let enlisted = self.enlisted.borrow_mut().remove(&what);
        enlisted.iter().flatten().for_each(Thread::unpark);
    }
}

/// How turns are given.
enum Policy {
    /// A task keeps its turn, but for one time in so many.
    Chance(u64),
    /// The task with the highest priority has it; at these steps the one that has it gets the lowest. A
    /// fault that takes few turns at the right moments is found by few of them.
    Priorities { of: Vec<u64>, lowest: u64, changes: Vec<u64> },
}

/// Turns by a seed, for one run.
struct Seeded {
    random: Random,
    policy: Policy,
    steps: u64,
    seed: Option<u64>,
}

impl Seeded {
    fn new(seed: u64, tasks: usize) -> Self {
        let mut random = Random::new(seed ^ 0x7461_736b);
        let policy = if random.below(2) == 0 {
            Policy::Chance(random.pick(&[1, 2, 5, 20, 60]))
        } else {
            let steps = random.pick(&[500, 2000, 4000]);
            let changes = (0..=random.below(20)).map(|_| random.below(steps)).collect();
            // The first task only waits for the others.
            let of = (0..=tasks).map(|_| (1 << 32) + random.below(1 << 32)).collect();
            Policy::Priorities { of, lowest: 1 << 32, changes }
        };
        Self { random, policy, steps: 0, seed: Some(seed) }
    }
}

impl shuttle::scheduler::Scheduler for Seeded {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.seed.take().map(Schedule::new)
    }

    fn next_task(&mut self, tasks: &[&Task], current: Option<TaskId>, yields: bool) -> Option<TaskId> {
        self.steps += 1;
        // Sometimes one that sleeps wakes up for no reason.
        let all = self.random.below(300) == 0;
        let ready: Vec<TaskId> = tasks.iter().filter(|t| all || t.runnable()).map(|task| task.id()).collect();
        let stays = current.filter(|task| !yields && ready.contains(task));
        match &mut self.policy {
            Policy::Chance(one_in) => match stays.filter(|_| self.random.below(*one_in) != 0) {
                None => Some(self.random.pick(&ready)),
                stays => stays,
            },
            Policy::Priorities { of, lowest, changes } => {
                if let Some(current) = current.filter(|_| changes.contains(&self.steps)) {
                    *lowest -= 1;
                    of[usize::from(current)] = *lowest;
                }
                ready.into_iter().max_by_key(|task| of[usize::from(*task)])
            }
        }
    }

    fn next_u64(&mut self) -> u64 {
        self.random.next()
    }
}

/// Runs tasks as the seed says, to their ends.
///
/// # Errors
/// A panic, a deadlock, or that they get nowhere.
pub(crate) fn interleave(seed: u64, tasks: Vec<Work>) -> Result<(), String> {
    let scheduler = Seeded::new(seed, tasks.len());
    let mut config = Config::new();
    config.stack_size = 512 << 10;
    config.failure_persistence = FailurePersistence::None;
    config.max_steps = MaxSteps::FailAfter(MOST_STEPS);
    config.silence_warnings = true;
    let tasks = Mutex::new(tasks);
    let first = move || {
        let tasks = std::mem::take(&mut *tasks.lock().unwrap());
        let threads: Vec<_> = tasks.into_iter().map(shuttle::thread::spawn).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    };
    let run = || under(Rc::new(Turns::default()), || Runner::new(scheduler, config).run(first));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    result.map(|_| ()).map_err(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        text.or_else(|| payload.downcast_ref::<&str>().map(|t| (*t).to_owned())).unwrap_or_default()
    })
}
