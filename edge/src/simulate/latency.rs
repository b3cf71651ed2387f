//! How long an upstream takes: as it is said, or as it was measured.
#![deny(clippy::disallowed_methods)]

use std::f64::consts::TAU;
use std::time::Duration;

use super::random::Random;

/// The 99th percentile of a normal distribution, in standard deviations.
const Z99: f64 = 2.326_347_874;

/// A distribution of times.
#[derive(Debug, Clone, PartialEq)]
pub enum Latency {
    /// Log-normal: the logarithm of the seconds has this mean and standard deviation.
    LogNormal {
        /// In the logarithm of seconds.
        mean: f64,
        /// 0: always the same.
        deviation: f64,
    },
    /// Points of the cumulative distribution: a share of 0 to 1, and seconds. Straight between them.
    Measured(Vec<(f64, f64)>),
}

impl Latency {
    /// Half of all times are shorter than `median`, and 99 of 100 shorter than `p99`, which is not below it.
    pub fn of(median: Duration, p99: Duration) -> Latency {
        // Zero has no logarithm.
        let ln = |time: Duration| time.max(Duration::from_micros(1)).as_secs_f64().ln();
        Latency::LogNormal { mean: ln(median), deviation: ((ln(p99) - ln(median)) / Z99).max(0.0) }
    }

    /// From the cumulative buckets of a histogram: upper bounds in seconds, rising, the last one infinite perhaps, and how
    /// many times were at most that. `None`: there are none.
    pub fn measured(buckets: &[(f64, u64)]) -> Option<Latency> {
        let all = buckets.last().map(|&(_, count)| count).filter(|&count| count > 0)? as f64;
        let mut points = vec![(0.0, 0.0)];
        let mut finite = 0.0;
        for &(bound, count) in buckets {
            // Beyond the last bound nothing is known; twice that is a guess on the careful side.
            finite = if bound.is_finite() { bound } else { 2.0 * finite };
            let share = count as f64 / all;
            if points.last().is_some_and(|&(before, _)| share > before) {
                points.push((share, finite));
            } else if let Some(last) = points.last_mut().filter(|(before, _)| *before == 0.0) {
                // Nothing is quicker than this.
                last.1 = finite;
            }
        }
        Some(Latency::Measured(points))
    }

    /// One of the times.
    pub(super) fn sample(&self, random: &mut Random) -> Duration {
        let seconds = match self {
            Latency::LogNormal { mean, deviation } if *deviation == 0.0 => mean.exp(),
            Latency::LogNormal { mean, deviation } => {
                // Box and Muller.
                let normal = (-2.0 * random.share().ln()).sqrt() * (TAU * random.share()).cos();
                (mean + deviation * normal).exp()
            }
            Latency::Measured(points) => at(points, random.share()),
        };
        Duration::try_from_secs_f64(seconds.min(3600.0)).unwrap_or_default()
    }

    /// What this share of the times is at most.
    pub fn quantile(&self, share: f64) -> Duration {
        if let Latency::Measured(points) = self {
            return Duration::try_from_secs_f64(at(points, share)).unwrap_or_default();
        }
        // Enough for a figure to show.
        let mut random = Random::new(1);
        let mut samples: Vec<Duration> = (0..4096).map(|_| self.sample(&mut random)).collect();
        samples.sort();
        samples[((share * samples.len() as f64) as usize).min(samples.len() - 1)]
    }
}

fn at(points: &[(f64, f64)], share: f64) -> f64 {
    let above = points.iter().position(|&(at, _)| at >= share).unwrap_or(points.len() - 1).max(1);
    let ((low, from), (high, to)) = (points[above - 1], points[above]);
    from + (to - from) * (share - low) / (high - low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(latency: &Latency, share: f64, expected_ms: f64) {
        let got = latency.quantile(share).as_secs_f64() * 1000.0;
        assert!((got - expected_ms).abs() < 0.07 * expected_ms, "{latency:?} {share}: {got} ms");
    }

    #[test]
    fn what_is_said_comes_out() {
        let ms = Duration::from_millis;
        check(&Latency::of(ms(50), ms(50)), 0.99, 50.0);
        let wide = Latency::of(ms(50), ms(400));
        check(&wide, 0.5, 50.0);
        check(&wide, 0.99, 400.0);
        assert!(Latency::of(Duration::ZERO, Duration::ZERO).quantile(0.5) < ms(1));
    }

    #[test]
    fn what_was_measured_comes_out() {
        assert_eq!(Latency::measured(&[]), None);
        assert_eq!(Latency::measured(&[(1.0, 0), (f64::INFINITY, 0)]), None);
        let buckets = [(0.02, 0), (0.05, 0), (0.1, 900), (1.0, 990), (f64::INFINITY, 1000)];
        let measured = Latency::measured(&buckets).unwrap();
        check(&measured, 0.45, 75.0);
        check(&measured, 0.9, 100.0);
        check(&measured, 0.945, 550.0);
        check(&measured, 0.995, 1500.0);
        // One bucket, and all in it.
        check(&Latency::measured(&[(0.1, 7), (f64::INFINITY, 7)]).unwrap(), 0.5, 50.0);
    }
}
