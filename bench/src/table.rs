//! The one table: figure, value, floor, ratio, aim, and whether it is met.

use std::fmt;

use comfy_table::{Cell, CellAlignment, presets};
use serde::{Serialize, Serializer, ser::SerializeStruct};

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Aim {
    OrMore(f64),
    OrLess(f64),
    /// So many times the floor.
    TimesFloorOrMore(f64),
    TimesFloorOrLess(f64),
}

impl Aim {
    fn is_met(self, value: f64, floor: Option<f64>) -> bool {
        match self {
            Self::OrMore(bound) => value >= bound,
            Self::OrLess(bound) => value <= bound,
            Self::TimesFloorOrMore(times) => floor.is_some_and(|floor| value >= times * floor),
            Self::TimesFloorOrLess(times) => floor.is_some_and(|floor| value <= times * floor),
        }
    }

    fn text(self, unit: &str) -> String {
        match self {
            Self::OrMore(bound) => format!("≥ {} {unit}", short(bound)),
            Self::OrLess(bound) => format!("≤ {} {unit}", short(bound)),
            Self::TimesFloorOrMore(times) => format!("≥ {times} ×"),
            Self::TimesFloorOrLess(times) => format!("≤ {times} ×"),
        }
    }
}

/// One measured number.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    name: String,
    unit: &'static str,
    value: f64,
    floor: Option<f64>,
    aims: Vec<Aim>,
}

impl Figure {
    pub(crate) fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), unit, value, floor: None, aims: vec![] }
    }

    /// What the same work costs without the product, in the same unit.
    #[must_use]
    pub(crate) fn over(self, floor: f64) -> Self {
        Self { floor: Some(floor), ..self }
    }

    #[must_use]
    pub(crate) fn aim(mut self, aim: Aim) -> Self {
        self.aims.push(aim);
        self
    }

    fn ratio(&self) -> Option<f64> {
        self.floor.filter(|floor| *floor != 0.0).map(|floor| self.value / floor)
    }

    fn aim_text(&self) -> String {
        self.aims.iter().map(|aim| aim.text(self.unit)).collect::<Vec<_>>().join(", ")
    }

    /// `None` without an aim: the figure is there to explain another one.
    fn is_met(&self) -> Option<bool> {
        let met = || self.aims.iter().all(|aim| aim.is_met(self.value, self.floor));
        (!self.aims.is_empty()).then(met)
    }
}

impl Serialize for Figure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Figure", 7)?;
        fields.serialize_field("figure", &self.name)?;
        fields.serialize_field("value", &self.value)?;
        fields.serialize_field("unit", self.unit)?;
        fields.serialize_field("floor", &self.floor)?;
        fields.serialize_field("ratio", &self.ratio())?;
        fields.serialize_field("aim", &self.aim_text())?;
        fields.serialize_field("ok", &self.is_met())?;
        fields.end()
    }
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Table(Vec<Figure>);

impl Table {
    pub(crate) fn extend(&mut self, figures: Vec<Figure>) {
        self.0.extend(figures);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["figure", "value", "floor", "ratio", "aim", "ok"]);
        for figure in &self.0 {
            let with_unit = |value: f64| format!("{} {}", short(value), figure.unit);
            let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
            table.add_row([
                Cell::new(&figure.name),
                right(with_unit(figure.value)),
                right(figure.floor.map(with_unit).unwrap_or_default()),
                right(figure.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default()),
                Cell::new(figure.aim_text()),
                Cell::new(match figure.is_met() {
                    Some(true) => "yes",
                    Some(false) => "NO",
                    None => "",
                }),
            ]);
        }
        write!(f, "{table}")
    }
}

/// Three digits are more than these measurements are worth.
fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_held_against_each_of_its_aims() {
        let both = |value| {
            let figure = Figure::new("f", value, "ms").over(1.0);
            figure.aim(Aim::TimesFloorOrLess(3.5)).aim(Aim::OrLess(3.0)).is_met()
        };
        assert_eq!((both(3.0), both(3.2), both(3.6)), (Some(true), Some(false), Some(false)));
        assert_eq!(Figure::new("f", 1.0, "ms").is_met(), None);
        let without_floor = Figure::new("f", 1.0, "runs/s").aim(Aim::TimesFloorOrMore(0.5));
        assert_eq!(without_floor.is_met(), Some(false), "what was not measured is not met");
    }

    #[test]
    fn the_table_names_every_column() {
        let mut table = Table::default();
        table.extend(vec![
            Figure::new("one-step runs", 610.4, "runs/s").over(1000.0).aim(Aim::TimesFloorOrMore(0.55)),
        ]);
        let text = table.to_string();
        for part in ["figure", "610 runs/s", "1000 runs/s", "0.61", "≥ 0.55 ×", "yes"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        let json = serde_json::to_value(&table).unwrap();
        assert_eq!(json[0]["ok"], true);
    }
}
