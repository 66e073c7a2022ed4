//! [`Histogram`]: how often something took how long.

use std::time::Duration;

use super::Counter;

/// Upper bounds of the buckets in microseconds; one more bucket has none. From a read of what is cached
/// to a disk that does not answer.
pub(super) const BOUNDS: [u64; 19] = [
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000, 5_000_000, 10_000_000,
];

/// Counts of durations, and their sum.
#[derive(Default)]
pub(in crate::serve) struct Histogram {
    buckets: [Counter; BOUNDS.len() + 1],
    /// In nanoseconds; enough for 584 years.
    sum: Counter,
}

impl Histogram {
    /// One more that took so long.
    pub(in crate::serve) fn observe(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| bound * 1000 < nanos);
        self.buckets[bucket].add(1);
        if nanos > 0 {
            self.sum.add(nanos);
        }
    }

    /// For each bound, how many took no longer; and last, how many there were.
    pub(super) fn cumulative(&self) -> [u64; BOUNDS.len() + 1] {
        let mut sum = 0;
        std::array::from_fn(|bucket| {
            sum += self.buckets[bucket].get();
            sum
        })
    }

    /// The sum of all durations in seconds.
    #[expect(clippy::cast_precision_loss, reason = "a figure for people to look at")]
    pub(super) fn seconds(&self) -> f64 {
        self.sum.get() as f64 / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::default();
        for micros in [0, 10, 11, 20, 10_000_000, 10_000_001] {
            histogram.observe(Duration::from_micros(micros));
        }
        let cumulative = histogram.cumulative();
        assert_eq!(cumulative[..3], [2, 4, 4]);
        assert_eq!(cumulative[BOUNDS.len() - 1..], [5, 6]);
        assert!((histogram.seconds() - 20.000_042).abs() < 1e-9);
    }
}
