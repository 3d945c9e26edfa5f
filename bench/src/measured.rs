//! The values of one measurement.

use std::time::Duration;

use anyhow::{Result, ensure};

/// A named value.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Its name.
    pub metric: String,
    /// Its unit.
    pub unit: &'static str,
    /// The value.
    pub value: f64,
}

/// The values of one measurement, and what they cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The values; the first is what the case is about.
    pub values: Vec<Value>,
    /// Payload that arrived, in bytes, where that is the point.
    bytes: Option<f64>,
    /// Processor time of all parties.
    cpu: Option<Duration>,
}

impl Measured {
    /// A measurement with one value.
    pub fn one(metric: &str, unit: &'static str, value: f64) -> Self {
        Self {
            values: vec![Value {
                metric: metric.to_owned(),
                unit,
                value,
            }],
            bytes: None,
            cpu: None,
        }
    }

    /// The same with one more value.
    #[must_use]
    pub fn and(mut self, metric: &str, unit: &'static str, value: f64) -> Self {
        self.values.push(Value {
            metric: metric.to_owned(),
            unit,
            value,
        });
        self
    }

    /// The same with the bytes that arrived.
    #[must_use]
    pub fn moved(self, bytes: f64) -> Self {
        Self {
            bytes: Some(bytes),
            ..self
        }
    }

    /// Notes the processor time of all parties.
    pub fn set_cpu(&mut self, cpu: Duration) {
        self.cpu = Some(cpu);
    }

    /// Processor seconds on 10^9 bytes, where both are known.
    pub fn cpu_seconds_per_gb(&self) -> Option<f64> {
        let bytes = self.bytes.filter(|bytes| *bytes > 0.0)?;
        Some(self.cpu?.as_secs_f64() / (bytes / 1e9))
    }

    /// Checks that something was measured.
    ///
    /// # Errors
    ///
    /// A first value that is no number or not above 0, another that is no number or below 0.
    pub fn check(&self) -> Result<()> {
        for (index, value) in self.values.iter().enumerate() {
            let is_sound =
                value.value.is_finite() && (value.value > 0.0 || index > 0 && value.value == 0.0);
            ensure!(
                is_sound,
                "Nothing got through: {} {}",
                value.metric,
                value.value
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_by_bytes() {
        let mut measured = Measured::one("tcp_stream", "Gbit/s", 8.0).moved(2e9);
        assert_eq!(measured.cpu_seconds_per_gb(), None);
        measured.set_cpu(Duration::from_secs(3));
        assert_eq!(measured.cpu_seconds_per_gb(), Some(1.5));
        assert_eq!(measured.moved(0.0).cpu_seconds_per_gb(), None);
    }

    #[test]
    fn figure_of_nothing_is_none() {
        assert!(Measured::one("a", "1/s", 0.0).check().is_err());
        assert!(Measured::one("a", "1/s", f64::NAN).check().is_err());
        assert!(
            Measured::one("a", "1/s", 1.0)
                .and("loss", "%", 0.0)
                .check()
                .is_ok()
        );
    }
}
