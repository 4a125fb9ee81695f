//! What an application's types make of bytes: arguments, schemas, states, names.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use perennial_core::id::{ActorId, NodeId};
use serde_json::json;

use super::survives;
use crate::actor::{Actor, Args, Format, Kind, KindOf};
use crate::call::EventId;
use crate::schema::{Schema, SchemaError};
use crate::{actor, data};

/// Names itself, in every way a type can.
#[data]
#[derive(Default)]
struct Tree {
    value: i32,
    left: Option<Box<Tree>>,
    others: Vec<Tree>,
    named: BTreeMap<String, Tree>,
}

#[data]
#[derive(Default)]
struct Marker;

#[data]
enum Shape {
    Nothing,
    One(u64),
    Two(u8, String),
    Many { tree: Box<Shape>, all: Vec<Shape> },
}

/// Every kind of parameter.
#[data]
#[derive(Default)]
struct Everything {
    tree: Tree,
    small: (i8, u8, char, bool),
    wide: (i128, u128),
    float: (f32, f64),
    text: String,
    raw: Bytes,
    maybe: Option<Option<u32>>,
    units: Vec<()>,
    markers: Vec<Marker>,
    set: BTreeSet<u16>,
    map: HashMap<String, Vec<u64>>,
    array: [u16; 3],
    time: Duration,
    shape: Option<Shape>,
}

/// An actor whose handlers take everything.
#[data]
#[derive(Default)]
struct Taker {
    last: Everything,
}

#[actor]
impl Taker {
    /// A plain one.
    pub fn add(&mut self, sku: String, qty: u32, cents: u64) -> u64 {
        sku.len() as u64 + u64::from(qty) + cents
    }

    /// Types that nest.
    pub fn grow(&mut self, tree: Tree, shape: Option<Shape>) -> bool {
        self.last = Everything { tree, shape, ..Everything::default() };
        true
    }

    /// Types that take no bytes.
    pub fn mark(&mut self, units: Vec<()>, markers: Vec<Marker>, pairs: BTreeMap<(), Marker>) -> usize {
        units.len() + markers.len() + pairs.len()
    }

    /// Everything at once.
    pub fn all(&mut self, everything: Everything, id: ActorId) -> String {
        self.last = everything;
        id.to_string()
    }
}

fn decode(format: Format, bytes: &[u8]) {
    let args = Args { format, bytes: Bytes::copy_from_slice(bytes) };
    let [add, grow, mark, all] = Taker::METHODS else { panic!("a handler is missing") };
    if let Ok(args) = args.decode::<(String, u32, u64)>(Taker::KIND, add) {
        survives(&args);
    }
    if let Ok(args) = args.decode::<(Tree, Option<Shape>)>(Taker::KIND, grow) {
        survives(&args);
    }
    if let Ok((units, markers, pairs)) =
        args.decode::<(Vec<()>, Vec<Marker>, BTreeMap<(), Marker>)>(Taker::KIND, mark)
    {
        let _ = units.len() + markers.len() + pairs.len();
    }
    let _ = args.decode::<(Everything, ActorId)>(Taker::KIND, all);
}

/// Arguments at the edge, by name.
pub(super) fn json(bytes: &[u8]) {
    decode(Format::Json, bytes);
}

fn everything() -> Everything {
    let leaf = Tree { value: 3, ..Tree::default() };
    let tree = Tree { left: Some(Box::default()), others: vec![leaf], ..Tree::default() };
    Everything {
        tree,
        text: "text".into(),
        raw: Bytes::from_static(b"raw"),
        maybe: Some(Some(7)),
        units: vec![(); 3],
        markers: vec![Marker],
        set: [1, 2].into(),
        map: [("a".to_owned(), vec![1, 2])].into(),
        time: Duration::from_millis(1500),
        shape: Some(Shape::Many { tree: Box::new(Shape::Two(1, "x".into())), all: vec![Shape::One(2)] }),
        ..Everything::default()
    }
}

pub(super) fn json_seeds() -> Vec<Vec<u8>> {
    let nested = "{\"tree\":{\"value\":1,\"others\":".to_owned() + &"[".repeat(200);
    let all = json!({ "everything": everything(), "id": "Cart/alice" });
    let mut seeds: Vec<_> = [
        json!({ "sku": "tea", "qty": 2, "cents": 250 }),
        json!({ "tree": everything().tree, "shape": everything().shape }),
        json!({ "units": [null, null], "markers": [null], "pairs": {} }),
        all,
    ]
    .iter()
    .map(|value| value.to_string().into_bytes())
    .collect();
    seeds.extend([Vec::new(), b"{\"qty\": 1e999, \"qty\": 2}".to_vec(), nested.into_bytes()]);
    seeds
}

/// Arguments between programs, by position.
pub(super) fn args(bytes: &[u8]) {
    decode(Format::Postcard, bytes);
}

pub(super) fn args_seeds() -> Vec<Vec<u8>> {
    fn bytes(value: &impl serde::Serialize) -> Vec<u8> {
        postcard::to_stdvec(value).expect("a value encodes")
    }
    let id: ActorId = "Cart/alice".parse().expect("a valid name");
    let endless = bytes(&(u64::MAX, 0u8, 0u8));
    vec![
        bytes(&("tea", 2u32, 250u64)),
        bytes(&(everything().tree, everything().shape)),
        bytes(&(vec![(); 3], vec![Marker], BTreeMap::from([((), Marker)]))),
        bytes(&(everything(), id)),
        endless,
        // A tree that leans left, and shapes in shapes.
        [[0, 1]; 2000].concat(),
        [&[0, 0, 0, 0, 1][..], &[3; 4000]].concat(),
    ]
}

/// A stored schema, behind two bytes of its length, and a state written with it.
pub(super) fn schemas(bytes: &[u8]) {
    let Some((len, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (schema, state) = rest.split_at(usize::from(u16::from_le_bytes(*len)).min(rest.len()));
    static OWN: LazyLock<Arc<dyn Kind>> = LazyLock::new(KindOf::<Taker>::shared);
    let own = &*OWN;
    let _ = own.decode(state);
    let Ok(schema) = Schema::decode(schema) else { return };
    survives(&schema);
    let fingerprint = schema.fingerprint();
    assert_eq!(fingerprint, schema.fingerprint(), "a fingerprint changed");
    let checked = schema.check(state);
    let shown = schema.to_json(state);
    assert!(
        checked.is_ok() == shown.is_ok() || matches!(checked, Err(SchemaError::TooMany)),
        "{checked:?} but {shown:?}"
    );
    let _ = schema.read::<Everything>(state);
    if let Ok(state) = own.upgrade(state, &schema) {
        let state = state.encode_into(Vec::new()).expect("what was read can be written");
        if own.check(&state).is_ok() {
            assert!(own.decode(&state).is_ok(), "what was written can be read");
        }
    }
}

pub(super) fn schema_seeds() -> Vec<Vec<u8>> {
    fn behind(schema: &Schema, state: &[u8]) -> Vec<u8> {
        let schema = postcard::to_stdvec(schema).expect("a schema encodes");
        [&(schema.len() as u16).to_le_bytes(), &schema[..], state].concat()
    }
    let state = |value: &Everything| postcard::to_stdvec(value).expect("a state encodes");
    vec![
        behind(&Schema::of::<Taker>(), &state(&everything())),
        behind(&Schema::of::<Everything>(), &state(&everything())),
        behind(&Schema::of::<Tree>(), &[[0, 1]; 200].concat()),
        behind(&Schema::of::<Vec<Vec<()>>>(), &[[0xff, 0x1f]; 64].concat()),
        behind(&Schema::of::<(String, u32)>(), &[3, b't', b'e', b'a', 2]),
        // A schema that is nothing but options.
        [&2000u16.to_le_bytes()[..], &[9; 2000]].concat(),
    ]
}

/// Names that users and other nodes give.
pub(super) fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(actor) = text.parse::<ActorId>() {
        assert_eq!(format!("{}/{}", actor.kind(), actor.key()), text);
        assert_eq!(ActorId::new(actor.kind(), actor.key()), Ok(actor.clone()));
        survives(&actor);
    }
    if let Ok(node) = NodeId::new(text) {
        assert_eq!(node.as_str(), text);
        survives(&node);
    }
    if let Ok(event) = text.parse::<EventId>() {
        assert_eq!(event.to_string().parse(), Ok(event));
    }
}

pub(super) fn name_seeds() -> Vec<Vec<u8>> {
    ["Cart/alice", "a.b_c-D/päth/with/slashes", "n1", "node-17", "17-0", "18446744073709551615-4294967295"]
        .map(|name| name.as_bytes().to_vec())
        .into()
}
