//! What a program has measured.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::quantile;

/// What a program has to say to its question.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// What was measured against something that grows, or just measured.
    pub figures: Vec<Figure>,
    /// What does not fit that shape.
    pub tables: Vec<Table>,
    /// What was left out, and why; and what else has to be known.
    pub notes: Vec<String>,
}

/// One thing that was measured of several subjects.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// The name of the picture, if there is one, and of nothing else: lower case, with hyphens.
    pub name: String,
    /// What was measured.
    pub title: String,
    /// The unit of the samples.
    pub unit: String,
    /// What grows, and its unit; `None` if nothing does.
    pub axis: Option<String>,
    /// The subject that the others are held against.
    pub floor: Option<String>,
    /// Those who were measured, in the order in which they are shown.
    pub subjects: Vec<Subject>,
}

/// Samples of one subject.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Subject {
    /// Who it is.
    pub name: String,
    /// By what grows.
    pub points: Vec<Point>,
}

/// Samples of one subject at one place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    /// How much there is of what grows.
    pub at: f64,
    /// One of each round, in their order.
    pub samples: Vec<f64>,
}

/// Words and numbers as they are to be shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// The names of the columns.
    pub head: Vec<String>,
    /// As many cells each.
    pub rows: Vec<Vec<String>>,
}

impl Figure {
    /// A figure without samples.
    #[must_use]
    pub fn new(name: &str, title: &str, unit: &str) -> Self {
        Self {
            name: name.to_owned(),
            title: title.to_owned(),
            unit: unit.to_owned(),
            axis: None,
            floor: None,
            subjects: Vec::new(),
        }
    }

    /// Says what grows.
    #[must_use]
    pub fn axis(mut self, axis: &str) -> Self {
        self.axis = Some(axis.to_owned());
        self
    }

    /// Says against whom the others are held.
    #[must_use]
    pub fn floor(mut self, subject: &str) -> Self {
        self.floor = Some(subject.to_owned());
        self
    }

    /// Takes a sample down.
    pub fn add(&mut self, subject: &str, at: f64, sample: f64) {
        let subject = match self.subjects.iter_mut().position(|known| known.name == subject) {
            Some(place) => &mut self.subjects[place],
            None => {
                self.subjects.push(Subject { name: subject.to_owned(), points: Vec::new() });
                self.subjects.last_mut().expect("it was added just now")
            }
        };
        match subject.points.iter_mut().find(|point| point.at == at) {
            Some(point) => point.samples.push(sample),
            None => subject.points.push(Point { at, samples: vec![sample] }),
        }
    }

    /// The places at which there are samples, from the least.
    #[must_use]
    pub fn places(&self) -> Vec<f64> {
        let mut places: Vec<f64> =
            self.subjects.iter().flat_map(|s| s.points.iter().map(|point| point.at)).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        places
    }

    /// Samples of the floor at each place.
    pub(crate) fn floors(&self) -> BTreeMap<u64, &[f64]> {
        let floor = self.subjects.iter().find(|subject| Some(&subject.name) == self.floor.as_ref());
        let points = floor.into_iter().flat_map(|floor| &floor.points);
        points.map(|point| (point.at.to_bits(), &point.samples[..])).collect()
    }
}

impl Subject {
    /// The samples at a place.
    #[must_use]
    pub fn at(&self, place: f64) -> Option<&Point> {
        self.points.iter().find(|point| point.at == place)
    }
}

impl Point {
    /// The sample that this share of all stays below.
    #[must_use]
    pub fn quantile(&self, share: f64) -> f64 {
        quantile(&self.samples, share)
    }

    /// The median ratio to samples of the same rounds.
    pub(crate) fn ratio(&self, floor: &[f64]) -> Option<f64> {
        let pairs = self.samples.iter().zip(floor).filter(|(_, floor)| **floor > 0.0);
        let ratios: Vec<f64> = pairs.map(|(sample, floor)| sample / floor).collect();
        (!ratios.is_empty()).then(|| quantile(&ratios, 0.5))
    }
}
