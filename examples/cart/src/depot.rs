//! The depot: where parcels leave.

use perennial::prelude::*;

use crate::order::Order;

/// Key of the one depot there is.
pub const DEPOT: &str = "main";
/// Most pieces in a parcel; a larger order is not sent.
pub const PARCEL_PIECES_MAX: u32 = 40;

/// Sends parcels.
#[data]
#[derive(Default)]
pub struct Depot {
    parcels: u64,
}

#[actor]
impl Depot {
    /// Sends an order's parcel unless it is too large, and tells the order.
    pub fn ship(&mut self, ctx: &mut Ctx<Self>, order: String, pieces: u32) {
        let order = ctx.get::<Order>(&order);
        if pieces > PARCEL_PIECES_MAX {
            return ctx.send(order.unshippable());
        }
        self.parcels += 1;
        ctx.send(order.shipped());
    }

    /// Parcels sent.
    pub fn parcels(&self) -> u64 {
        self.parcels
    }
}
