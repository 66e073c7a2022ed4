//! What several tasks did to a volume and saw of it, when each began and ended, and whether that can be.
//!
//! The rules: one order of all that was done to a cell explains all that was seen there, in which nothing
//! comes before what had ended when it began; and after a crash every cell is as it was at one and the
//! same instant, which is none before the latest flush that had been acknowledged began.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use hostveil::anchor::SignedRecord;

use crate::disk::SimDisk;

/// The end of what has not ended, or failed: it may take effect, at any time.
const NEVER: u64 = u64::MAX;

/// What was done to a cell, which is half a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum What {
    /// It was given this number; `durable` when the request would not end before that is.
    Wrote { durable: bool },
    /// It had this number.
    Saw,
}

#[derive(Clone, Copy, Debug, Hash)]
struct Access {
    begin: u64,
    end: u64,
    what: What,
    number: u64,
}

impl Access {
    fn wrote(&self) -> bool {
        self.what != What::Saw
    }
}

/// A store as it was when a machine could have gone down.
pub(crate) struct Cut {
    pub(crate) disk: SimDisk,
    pub(crate) record: Option<SignedRecord>,
    at: u64,
}

/// What happened, in the order in which it did.
pub(crate) struct Account {
    clock: u64,
    cells: Vec<Vec<Access>>,
    /// Beginnings and ends of flushes that were acknowledged.
    flushes: Vec<(u64, u64)>,
    next: u64,
    pub(crate) cuts: Vec<Cut>,
    /// The first thing that cannot be.
    pub(crate) broken: Option<String>,
}

/// Something that has begun: what was written to which cells.
#[derive(Debug)]
pub(crate) struct Begun {
    at: u64,
    wrote: Vec<(usize, usize)>,
}

impl Account {
    /// Of a volume whose cell `n` has the number `n + 1`.
    pub(crate) fn new(cells: usize) -> Self {
        let first = |number| Access { begin: 0, end: 0, what: What::Wrote { durable: true }, number };
        Self {
            clock: 0,
            cells: (1..=cells as u64).map(|number| vec![first(number)]).collect(),
            flushes: Vec::new(),
            next: cells as u64 + 1,
            cuts: Vec::new(),
            broken: None,
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Something begins that writes nothing.
    pub(crate) fn begin(&mut self) -> Begun {
        Begun { at: self.tick(), wrote: Vec::new() }
    }

    /// A write of zeroes begins, or one of numbers that nothing else has, which are given back.
    pub(crate) fn begin_write(
        &mut self,
        cells: Range<usize>,
        zero: bool,
        durable: bool,
    ) -> (Begun, Vec<u64>) {
        let mut begun = self.begin();
        let mut numbers = Vec::new();
        for cell in cells {
            let number = if zero { 0 } else { self.next };
            self.next += 1;
            numbers.push(number);
            begun.wrote.push((cell, self.cells[cell].len()));
            let what = What::Wrote { durable };
            self.cells[cell].push(Access { begin: begun.at, end: NEVER, what, number });
        }
        (begun, numbers)
    }

    /// What has begun was done.
    pub(crate) fn done(&mut self, begun: &Begun) {
        let end = self.tick();
        begun.wrote.iter().for_each(|(cell, number)| self.cells[*cell][*number].end = end);
    }

    /// What has begun was a flush, and is done.
    pub(crate) fn flushed(&mut self, begun: &Begun) {
        let end = self.tick();
        self.flushes.push((begun.at, end));
    }

    /// What has begun read these numbers from `first` on.
    pub(crate) fn saw(&mut self, begun: &Begun, first: usize, numbers: &[u64]) {
        let end = self.tick();
        for (cell, number) in (first..).zip(numbers) {
            self.cells[cell].push(Access { begin: begun.at, end, what: What::Saw, number: *number });
        }
    }

    /// The machine could go down now.
    pub(crate) fn cut(&mut self, disk: SimDisk, record: Option<SignedRecord>) {
        let at = self.tick();
        self.cuts.push(Cut { disk, record, at });
    }

    /// Notes something that cannot be, if it is the first.
    pub(crate) fn breaks(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    /// A number that differs for what happens in another order.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.clock, &self.cells, &self.flushes).hash(&mut hasher);
        hasher.finish()
    }

    /// Whether what was seen can be.
    ///
    /// # Errors
    /// What cannot.
    pub(crate) fn judge(&self) -> Result<(), String> {
        for (cell, accesses) in self.cells.iter().enumerate() {
            assert!(accesses.len() <= 128, "too much for one word");
            if !explained(accesses, 0, 0, &mut HashSet::new()) {
                return Err(format!("no order explains what was seen of cell {cell}: {}", told(accesses)));
            }
        }
        Ok(())
    }

    /// Whether `found` can be what is there after the machine went down at `cut`.
    ///
    /// # Errors
    /// What cannot.
    pub(crate) fn judge_cut(&self, cut: &Cut, found: &[u64]) -> Result<(), String> {
        let flushed =
            self.flushes.iter().filter(|(_, end)| *end < cut.at).map(|(begin, _)| *begin).max().unwrap_or(0);
        let spans: Vec<Vec<Range<u64>>> =
            self.cells.iter().zip(found).map(|(cell, number)| spans(cell, *number, cut.at)).collect();
        let begins = spans.iter().flatten().map(|span| span.start).filter(|begin| *begin > flushed);
        let mut instants = begins.chain([flushed]);
        if instants.any(|at| spans.iter().all(|of| of.iter().any(|span| span.contains(&at)))) {
            return Ok(());
        }
        let cells = self.cells.iter().zip(found).zip(&spans).enumerate();
        let listed: Vec<String> = cells
            .filter(|(_, ((cell, _), _))| cell.len() > 1)
            .map(|(n, ((cell, found), spans))| {
                format!("cell {n} has {found} (current in {spans:?}) of {}", told(cell))
            })
            .collect();
        Err(format!("a cut at {}, flushed at {flushed}, is of no one instant: {}", cut.at, listed.join("; ")))
    }
}

fn told(accesses: &[Access]) -> String {
    let one = |a: &Access| {
        let end = if a.end == NEVER { String::new() } else { a.end.to_string() };
        format!("{}..{end} {} {}", a.begin, if a.wrote() { "wrote" } else { "saw" }, a.number)
    };
    accesses.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// When a cell can have had a number, up to `cut`. What was to be durable when the request ended, and
/// ended, cannot be missing.
fn spans(accesses: &[Access], number: u64, cut: u64) -> Vec<Range<u64>> {
    let writes = || accesses.iter().filter(|access| access.wrote() && access.begin < cut);
    let lost = |write: &Access| {
        let durable = |later: &Access| later.what == What::Wrote { durable: true } && later.end < cut;
        writes().any(|later| durable(later) && later.begin > write.end)
    };
    writes()
        .filter(|write| write.number == number && !lost(write))
        .map(|write| {
            let after = writes().filter(|later| later.begin > write.end).map(|later| later.end).min();
            write.begin..after.unwrap_or(NEVER).min(cut)
        })
        .collect()
}

/// Whether the accesses that are not `done` have an order in which each reader sees what is there, from
/// `now` on.
fn explained(accesses: &[Access], done: u128, now: u64, tried: &mut HashSet<(u128, u64)>) -> bool {
    let open = || accesses.iter().enumerate().filter(|(number, _)| done >> number & 1 == 0);
    let first_end = open().map(|(_, access)| access.end).min().unwrap_or(NEVER);
    if first_end == NEVER {
        return true;
    }
    if !tried.insert((done, now)) {
        return false;
    }
    let mut next = open().filter(|(_, access)| access.begin <= first_end);
    // A reader that can be served is in nobody's way.
    if let Some((number, _)) = next.clone().find(|(_, access)| !access.wrote() && access.number == now) {
        return explained(accesses, done | 1 << number, now, tried);
    }
    // What failed need not have an order, but where somebody saw it; of its like, the first will do.
    let needless = |(number, access): (usize, &Access)| {
        let like =
            |(other, a): (usize, &Access)| other < number && a.end == NEVER && a.number == access.number;
        let seen = open().any(|(_, a)| !a.wrote() && a.number == access.number);
        access.end == NEVER && (!seen || open().any(like))
    };
    next.any(|(number, access)| {
        access.wrote()
            && !needless((number, access))
            && explained(accesses, done | 1 << number, access.number, tried)
    })
}

/// An account of one cell: beginnings, ends, whether it was written, and the numbers.
fn of(accesses: &[(u64, u64, bool, u64)]) -> Vec<Access> {
    let first = (0, 0, true, 1);
    let one = |(begin, end, wrote, number): (u64, u64, bool, u64)| {
        let what = if wrote { What::Wrote { durable: false } } else { What::Saw };
        Access { begin, end, what, number }
    };
    std::iter::once(first).chain(accesses.iter().copied()).map(one).collect()
}

#[test]
fn an_account_that_can_be_is_explained_and_no_other() {
    let explained = |accesses: &[_]| explained(&of(accesses), 0, 0, &mut HashSet::new());
    assert!(explained(&[(1, 2, true, 5), (3, 4, false, 5)]));
    assert!(!explained(&[(1, 2, true, 5), (3, 4, false, 1)]), "stale");
    assert!(explained(&[(1, 4, true, 5), (2, 3, false, 1)]), "not yet");
    assert!(explained(&[(1, 4, true, 5), (2, 3, false, 5)]), "already");
    assert!(!explained(&[(2, 3, false, 5), (4, 5, true, 5)]), "from the future");
    assert!(!explained(&[(1, 9, true, 5), (2, 3, false, 5), (4, 5, false, 1)]), "and back again");
    assert!(explained(&[(1, 4, true, 5), (2, 3, true, 6), (5, 6, false, 6), (7, 8, false, 6)]));
    assert!(!explained(&[(1, 4, true, 5), (2, 3, true, 6), (5, 6, false, 6), (7, 8, false, 5)]));
    assert!(explained(&[(1, NEVER, true, 5), (2, 3, false, 5)]), "a request that failed may have worked");
    assert!(explained(&[(1, NEVER, true, 5), (2, 3, false, 1)]), "or not");
}

#[test]
fn a_cut_is_of_one_instant_after_the_last_flush() {
    let mut account = Account::new(2);
    let (first, _) = account.begin_write(0..1, false, false);
    account.done(&first);
    let flush = account.begin();
    account.flushed(&flush);
    let (second, _) = account.begin_write(1..2, false, false);
    account.done(&second);
    let (third, _) = account.begin_write(0..1, false, true);
    account.cut(SimDisk::new(0), None);
    account.done(&third);
    account.cut(SimDisk::new(0), None);
    let can_be = |cut: usize, found: &[u64]| account.judge_cut(&account.cuts[cut], found).is_ok();
    assert!(can_be(0, &[3, 2]) && can_be(0, &[3, 4]) && can_be(0, &[5, 4]));
    assert!(!can_be(0, &[1, 2]), "what was flushed is there");
    assert!(!can_be(0, &[5, 2]), "the third comes after the second");
    assert!(can_be(1, &[5, 4]) && !can_be(1, &[3, 4]), "the third was to be durable");
}
