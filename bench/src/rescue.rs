//! A pair of guests that is rebooted when it hangs: every later measurement would fail, a minute
//! each.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use virtio_inter_tests::{Testbed, is_inside, stop_here_if_ending};

use crate::case::{Case, Environment, Way};
use crate::guests::{Attached, Pair, frontend};
use crate::measured::Measured;
use crate::placement::Seat;

/// Times that guests may hang.
const MAX_HANGS: usize = 3;

/// The pair, and the hangs of its predecessors.
pub struct RescuedPair {
    environment: Environment,
    attached: Attached,
    program: Option<PathBuf>,
    /// Dropped before the bed that it lies in.
    pair: Pair,
    bed: Testbed,
    /// The ways during whose measurements guests hung.
    hangs: Vec<(String, Way)>,
    /// Why there is nothing more to be measured.
    given_up: Option<String>,
}

impl RescuedPair {
    /// Boots guests of an environment, on ports that run `program`.
    ///
    /// # Errors
    ///
    /// Those of [`Pair::boot`]; the pair keeps the details.
    pub fn boot(
        environment: Environment,
        attached: Attached,
        program: Option<PathBuf>,
    ) -> Result<Self> {
        let bed = Testbed::new("the bench")?;
        let booted = frontend(environment)
            .and_then(|frontend| Pair::boot_attached(&bed, frontend, attached, program.as_deref()));
        match booted {
            Ok(pair) => Ok(Self {
                environment,
                attached,
                program,
                pair,
                bed,
                hangs: Vec::new(),
                given_up: None,
            }),
            Err(error) => {
                bed.keep();
                Err(error)
            }
        }
    }

    /// The pair that is there now.
    pub fn pair(&mut self) -> &mut Pair {
        &mut self.pair
    }

    /// Keeps the logs of the pair that is there now.
    pub fn keep(&self) {
        self.bed.keep();
    }

    /// The way during whose measurement guests hung, or a port ended.
    pub fn into_hangs(self) -> Vec<(String, Way)> {
        self.hangs
    }

    /// Takes one measurement. If it fails because the guests hang, boots others on the same CPUs
    /// and in groups as before. The caller gives up a nested machine as a whole.
    ///
    /// # Errors
    ///
    /// A tool that fails or measures nothing; guests that hung too often, or a port that ended.
    pub fn measure(&mut self, case: &Case, way: Way, size: u32, seat: &Seat) -> Result<Measured> {
        if let Some(why) = &self.given_up {
            bail!("{why}");
        }
        let outcome = self.pair.measure(case.test, way, size);
        if outcome.is_err() && !is_inside() {
            stop_here_if_ending();
            let has_ports = self.pair.has_ports();
            if !has_ports || !self.pair.answers() {
                self.hung(case, way, has_ports, seat);
            }
        }
        outcome
    }

    fn hung(&mut self, case: &Case, way: Way, has_ports: bool, seat: &Seat) {
        self.bed.keep();
        self.hangs.push((case.id(), way));
        let after = format!("after {}/{}", case.id(), way.name());
        if !has_ports {
            self.given_up = Some(format!("A port ended {after}"));
        } else if self.hangs.len() == MAX_HANGS {
            self.given_up = Some(format!("Guests hung {MAX_HANGS} times, at last {after}"));
        } else if let Err(error) = self.boot_anew(seat) {
            self.given_up = Some(format!("Guests hung {after}: {error:#}"));
        }
    }

    fn boot_anew(&mut self, seat: &Seat) -> Result<()> {
        let next = Self::boot(self.environment, self.attached, self.program.clone());
        let mut next = next.context("Booting guests anew")?;
        let placed = next.pair.place(seat).inspect_err(|_| next.keep());
        placed.context("Placing guests anew")?;
        (self.pair, self.bed) = (next.pair, next.bed);
        Ok(())
    }
}
