//! Histories: what a guest and its machine do to a volume, made from a seed, and how to make one shorter.

use hostveil::anchor::AnchorMode;
use hostveil::sealed::{Limits, Parameters};

use crate::disk::Crash;
use crate::random::Random;

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The guest writes blocks.
    Write { lba: u64, blocks: u64, fua: bool },
    /// The guest trims blocks, or writes zeroes.
    Trim { lba: u64, blocks: u64 },
    /// The guest reads blocks.
    Read { lba: u64, blocks: u64 },
    /// The guest flushes; other requests come in meanwhile, as `seed` says, if it is not zero.
    Flush { seed: u64 },
    /// A group is written to the journal and not synced.
    CommitLater { seed: u64 },
    /// A checkpoint runs; other requests come in meanwhile.
    Checkpoint { seed: u64 },
    /// The anchor is moved.
    Anchor,
    /// The next sync fails.
    FailSync,
    /// The machine goes down after so many more disk operations, if nothing stops it before.
    Arm { operations: u64, seed: u64 },
    /// It goes down, now or where it was armed, and comes up again; the mount goes down `mounts` times.
    Restart { crash: Crash, seed: u64, mounts: u64 },
    /// The volume is closed, and mounted again.
    Close,
}

/// A volume, and what happens to it.
#[derive(Clone, Debug)]
pub(crate) struct History {
    /// Its shape.
    pub(crate) parameters: Parameters,
    /// Its limits.
    pub(crate) limits: Limits,
    /// Its anchor.
    pub(crate) anchor: Option<AnchorMode>,
    /// What happens.
    pub(crate) steps: Vec<Step>,
}

impl History {
    /// The history of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        // Half of them in hardly any room, where every block is soon used again; half with more groups and
        // levels.
        let small = random.below(2) == 0;
        let parameters = Parameters {
            logical_blocks: random.pick(if small { &[5, 7, 9] } else { &[20, 100, 130, 300, 600] }),
            group_shift: random.pick(&[7, 7, 8]),
            group_spare: random.pick(if small { &[60, 90, 128] } else { &[4, 8, 20] }),
            journal_blocks: random.pick(&[4, 5, 8, 16]),
            epochs: 64,
        };
        let limits = Limits {
            page_cache: random.pick(&[0, 0, 1 << 20]),
            overlay: random.pick(&[8, 40, 1000]),
            punch: random.pick(&[0, 1, 3]),
        };
        let anchor = random.pick(&[None, Some(AnchorMode::Strict), Some(AnchorMode::Lazy)]);
        let mut history = Self { parameters, limits, anchor, steps: Vec::new() };
        let fails = random.below(4) == 0;
        for _ in 0..random.below(6) + 2 {
            history.add_run(&mut random, fails);
        }
        history
    }

    /// What happens from one start of the machine to the next.
    fn add_run(&mut self, random: &mut Random, fails: bool) {
        let hot = (0..random.below(10) + 2)
            .map(|_| random.below(self.parameters.logical_blocks))
            .collect::<Vec<_>>();
        // How far the machine gets: into its first steps mostly, where every operation is another place.
        let length = random.pick(&[5, 15, 40]);
        let armed = random.below(5) > 0;
        if armed {
            let operations = random.pick(&[3, 10, 30, 100]);
            self.steps.push(Step::Arm { operations: random.below(operations), seed: random.next() });
        }
        for _ in 0..length {
            let step = self.step(random, &hot);
            self.steps.push(step);
            if fails && random.below(40) == 0 {
                self.steps.push(Step::FailSync);
            }
        }
        let crash = if random.below(10) < 7 { Crash::Power } else { Crash::Kill };
        let mounts = if random.below(3) == 0 { random.below(3) + 1 } else { 0 };
        self.steps.push(match random.below(12) {
            0 => Step::Close,
            _ => Step::Restart { crash, seed: random.next(), mounts },
        });
    }

    fn step(&self, random: &mut Random, hot: &[u64]) -> Step {
        let (lba, blocks) = self.place(random, hot);
        // No seed, nothing else happens meanwhile.
        let seed = random.next() * random.below(2);
        match random.below(100) {
            0..55 => Step::Write { lba, blocks, fua: random.below(10) == 0 },
            55..64 => Step::Trim { lba, blocks: self.clip(lba, blocks * random.pick(&[1, 1, 50])) },
            64..70 => Step::Read { lba, blocks },
            70..82 => Step::Flush { seed },
            82..90 => Step::CommitLater { seed },
            90..97 => Step::Checkpoint { seed },
            _ => Step::Anchor,
        }
    }

    fn clip(&self, lba: u64, blocks: u64) -> u64 {
        blocks.min(self.parameters.logical_blocks - lba)
    }

    /// Blocks that a request is about: few, so that requests meet.
    pub(crate) fn place(&self, random: &mut Random, hot: &[u64]) -> (u64, u64) {
        let lba = random.pick(hot);
        (lba, self.clip(lba, random.pick(&[1, 1, 1, 2, 3, 9])))
    }

    /// Leaves out steps as long as `fails` stays true of what remains.
    pub(crate) fn shrink(mut self, fails: impl Fn(&Self) -> bool) -> Self {
        let mut chunk = self.steps.len() / 2;
        while chunk > 0 {
            let mut at = 0;
            while at < self.steps.len() {
                let mut shorter = self.clone();
                shorter.steps.drain(at..(at + chunk).min(self.steps.len()));
                if fails(&shorter) {
                    self = shorter;
                } else {
                    at += chunk;
                }
            }
            chunk /= 2;
        }
        self
    }
}
