//! The keys a configuration type knows, found by asking its own `Deserialize`.
//!
//! A list of keys kept by hand would drift from the structs. Serde tells a deserializer the fields of every struct it
//! wants; [`Shape::of`] collects them, so that the nearest known key, the completeness of `configs/example.toml` and
//! the structs are one thing. Types that use `#[serde(flatten)]` hide their fields and must not be used in sections.

use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

/// What may stand at a place of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A table with these keys and no others.
    Table(BTreeMap<&'static str, Shape>),
    /// An array of values of this shape.
    List(Box<Shape>),
    /// A table whose keys are the operator's own, such as PostgreSQL parameters.
    Free,
    /// A single value.
    Leaf,
}

impl Shape {
    /// The shape of `T`.
    pub fn of<T: DeserializeOwned>() -> Self {
        shape_at::<T>(&[])
    }

    /// Full dotted keys of everything that is not a table with known keys, in order. An element of an array of tables
    /// is written `name[].key`.
    pub fn leaves(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect("", &mut out);
        out
    }

    fn collect(&self, prefix: &str, out: &mut Vec<String>) {
        match self {
            Self::Table(keys) => {
                for (key, shape) in keys {
                    let full = if prefix.is_empty() { (*key).to_owned() } else { format!("{prefix}.{key}") };
                    shape.collect(&full, out);
                }
            }
            Self::List(of) if matches!(**of, Self::Table(_)) => of.collect(&format!("{prefix}[]"), out),
            Self::List(_) | Self::Free | Self::Leaf => out.push(prefix.to_owned()),
        }
    }
}

/// One step from the root towards a place.
#[derive(Clone, Copy, Debug)]
enum Step {
    Key(&'static str),
    Element,
}

/// What a type asked for at the place.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Struct(&'static [&'static str]),
    List,
    Map,
    Value,
}

fn shape_at<T: DeserializeOwned>(path: &[Step]) -> Shape {
    let asked = Cell::new(None);
    // The probe stops with an error as soon as it knows, so that no type needs a value to be made of.
    let _ = T::deserialize(Probe { path, asked: &asked });
    let below = |step: Step| shape_at::<T>(&[path, &[step]].concat());
    match asked.get() {
        Some(Asked::Struct(fields)) => Shape::Table(fields.iter().map(|f| (*f, below(Step::Key(f)))).collect()),
        Some(Asked::List) => Shape::List(Box::new(below(Step::Element))),
        Some(Asked::Map) => Shape::Free,
        Some(Asked::Value) | None => Shape::Leaf,
    }
}

/// A deserializer that walks `path` and notes what the type asks for at its end.
struct Probe<'a> {
    path: &'a [Step],
    asked: &'a Cell<Option<Asked>>,
}

/// Ends a walk; never shown.
#[derive(Debug)]
struct Stop;

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("end of the walk")
    }
}
impl std::error::Error for Stop {}
impl de::Error for Stop {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

impl<'a> Probe<'a> {
    fn note<V>(&self, asked: Asked) -> Result<V, Stop> {
        self.asked.set(Some(asked));
        Err(Stop)
    }

    fn enter(self) -> Option<One<'a>> {
        let (first, rest) = self.path.split_first()?;
        Some(One { step: *first, value: Some(Probe { path: rest, asked: self.asked }) })
    }
}

impl<'de> de::Deserializer<'de> for Probe<'_> {
    type Error = Stop;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        if self.path.is_empty() {
            return self.note(Asked::Struct(fields));
        }
        visitor.visit_map(self.enter().ok_or(Stop)?)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        if self.path.is_empty() {
            return self.note(Asked::List);
        }
        visitor.visit_seq(self.enter().ok_or(Stop)?)
    }

    fn deserialize_map<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Stop> {
        self.note(Asked::Map)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Stop> {
        self.note(Asked::Value)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple
        tuple_struct enum identifier ignored_any
    }
}

/// A map with one entry, or a sequence with one element.
struct One<'a> {
    step: Step,
    value: Option<Probe<'a>>,
}

impl<'de> MapAccess<'de> for One<'_> {
    type Error = Stop;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Stop> {
        match (self.step, &self.value) {
            (Step::Key(key), Some(_)) => seed.deserialize(key.into_deserializer()).map(Some),
            _ => Ok(None),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Stop> {
        seed.deserialize(self.value.take().ok_or(Stop)?)
    }
}

impl<'de> SeqAccess<'de> for One<'_> {
    type Error = Stop;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Stop> {
        self.value.take().map(|probe| seed.deserialize(probe)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::config::Span;

    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only the names of the fields matter")]
    struct Outer {
        timeout: Option<Span>,
        inner: Inner,
        users: Vec<Inner>,
        names: Vec<String>,
        parameters: BTreeMap<String, String>,
    }

    #[derive(serde::Deserialize)]
    #[expect(dead_code, reason = "only the names of the fields matter")]
    struct Inner {
        port: u16,
    }

    #[test]
    fn every_field_of_every_struct_is_found() {
        let keys = Shape::of::<Outer>().leaves();
        assert_eq!(keys, ["inner.port", "names", "parameters", "timeout", "users[].port"]);
    }
}
