//! The API's answers and requests as JSON: what `API.md` describes by example and the OpenAPI
//! document by schema. A test reads the examples with these types, so that both stay the same.

mod certificates;
mod clock;
mod drain;
mod error;
mod event;
mod fleet;
mod journal;
mod plan;
mod purge;
mod push;
mod series;
mod status;
mod trace;

pub(crate) use certificates::*;
pub(crate) use clock::*;
pub(crate) use drain::*;
pub(crate) use error::*;
pub(crate) use event::*;
pub(crate) use fleet::*;
pub(crate) use journal::*;
pub(crate) use plan::*;
pub(crate) use purge::*;
pub(crate) use push::*;
pub(crate) use series::*;
pub(crate) use status::*;
pub(crate) use trace::*;

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    /// Decodes an example and encodes it again: both must have the same members.
    fn check<T: DeserializeOwned + Serialize>(name: &str, example: &str) {
        let shown: serde_json::Value =
            serde_json::from_str(example).unwrap_or_else(|e| panic!("{name}: {e}"));
        let read: T = serde_json::from_str(example).unwrap_or_else(|e| panic!("{name}: {e}"));
        let written = serde_json::to_value(&read).unwrap();
        assert_eq!(names(&written, ""), names(&shown, ""), "{name}");
    }

    fn names(value: &serde_json::Value, path: &str) -> std::collections::BTreeSet<String> {
        match value {
            serde_json::Value::Object(map) => map
                .iter()
                .flat_map(|(k, v)| {
                    names(v, &format!("{path}.{k}"))
                        .into_iter()
                        .chain([format!("{path}.{k}")])
                })
                .collect(),
            serde_json::Value::Array(list) => list
                .iter()
                .enumerate()
                .flat_map(|(n, v)| names(v, &format!("{path}[{n}]")))
                .collect(),
            _ => [path.to_owned()].into(),
        }
    }

    #[test]
    fn the_examples_of_the_description_are_what_is_answered() {
        let mut seen = Vec::new();
        for block in include_str!("../../API.md").split("```json ").skip(1) {
            let (name, rest) = block.split_once('\n').unwrap();
            let example = rest.split("```").next().unwrap();
            match name {
                "status" => check::<Status>(name, example),
                "fleet" => check::<FleetView>(name, example),
                "series" => check::<SeriesView>(name, example),
                "event" => check::<Event>(name, example),
                "plan" => check::<PlanView>(name, example),
                "pushed" => check::<Pushed>(name, example),
                "pushes" => check::<Pushes>(name, example),
                "purge" => check::<PurgeView>(name, example),
                "drain" => check::<DrainView>(name, example),
                "certificates" => check::<CertificatesView>(name, example),
                "trace" => check::<TraceView>(name, example),
                "mistakes" => check::<ErrorBody>(name, example),
                other => panic!("no type for the example {other:?}"),
            }
            seen.push(name);
        }
        assert_eq!(seen.len(), 12, "{seen:?}");
    }
}
