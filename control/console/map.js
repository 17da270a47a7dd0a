// The land of the world as a grid of dots, one bit each, on a Miller cylindrical projection: 180 columns of 2 degrees from
// 180 W, odd rows moved half a column to the east. Made from the 1:110m countries of Natural Earth (public domain).
'use strict';
const World = {
  step: 2,
  rowHeight: 2 * 0.866,
  width: 360,
  top: 100.5509,
  bottom: -62.7708,
  rows: [
    '0000000031fffbffffff800076000000000e000000000',
    '000000070067e3ffffff800064000010000f000000000',
    '00000007d9fbe1ffffff8000000000f8007fe001c0000',
    '00000001f9bfc00fffff0000000003e003ffe003f8000',
    '0000000c78bfe007ffff80000000038007ffe001ec000',
    '0000000f0dfae003ffff0000000006003ffffdc0c0000',
    '0000000ffdfff801fffe0000000006061fffffe0e0000',
    '0000001ffde7f803fffe000000000c0fffffffe8f8000',
    'c03e0005fe7fff01ffff000003c0060fffffffffffc00',
    '00fff0f9fff3ff03fffe00001fc0009fffffffffffc1c',
    '81ffffffff7ccf817ffc00001ff8047ffffffffffffff',
    'c1ffffffbefd9fc1fff000007ffcbffffffffffffffff',
    'f8ffffffffffcbf1ffc000007ffefffffffffffffffff',
    'fbffffffffff07e1ff03e000fffffffffffffffffffff',
    'b1ffffffffff9fe0fe03f000f9f7fffffffffffffffff',
    '087fffffffffc7c0fc03c003ffffffffffffffffffffe',
    '04fffffffff8c1c07c000007f7fffffffffffffffffff',
    '01ffffffffe01c007800000fe7ffffffffffffffffffc',
    '01ffffffffe01f0038000007f7ffffffffffffffffbf8',
    '007a0fffffe01e4000000007e3ffffffffffffffff300',
    '000c03fffff01fe000000086e3ffffffffffffff80700',
    '003401fffffc0fe000000182cfffffffffffffff00f00',
    '006000ffffff0ff8000000c3c7fffffffffffffe00f00',
    '0180007fffffbffc000007c3bfffffffffffffff00e00',
    '000000bfffffdffe000003e7ffffffffffffffffc0e00',
    '000000bffffffffc000007efffffffffffffffffc0800',
    '0000003ffffffffa000000ffffffffffffffffffe0000',
    '0000003fffffffe60000007fffffffffffffffff40000',
    '0000000fffffffc7000000ffffffffffffffffffc0000',
    '0000000ffffffff10000007ffffffffffffffffe40000',
    '0000000ffffffff00000003fffdfcffffffffffe40000',
    '0000000fffffff400000037dbf07dffffffffffc60000',
    '0000000fffffff00000003f0df81e7fffffffff0e0000',
    '0000000ffffffc00000007e2ffffefffffffffe080000',
    '0000000ffffffc00000003e12dffe7fffffffd40c0000',
    '0000000ffffff800000007c0cdffe7fffffffee180000',
    '00000007fffff800000001df04ffffffffffff6380000',
    '00000007fffff000000001ff022ffffffffffc6f00000',
    '00000001ffffe000000003ff000ffffffffffe1e00000',
    '00000001ffffc000000007ffce5ffffffffffe1000000',
    '00000000bfffc000000003fffffffffffffffe0000000',
    '000000007fc0c00000000fffffffdffffffffe0000000',
    '000000007fc0700000000ffffffff7fffffffe0000000',
    '000000003fc0400000003fffffeff5fffffffc0000000',
    '0000000017c0100000003fffffffff0ffffffe0000000',
    '000000000781e00000007fffffffff0ffeffe20000000',
    '0008000007c6180000003ffffffbff01fc7f400000000',
    '0000000003ec070000003ffffffbfe03f87e800000000',
    '0000000000fe000000003ffffffdfc01f03f010000000',
    '00000000005f000000007ffffffdf001c05f820000000',
    '000000000007800000003fffffffe000e01f818000000',
    '000000000003020000003fffffff1001c017828000000',
    '00000000000187f000001ffffffff000e003838000000',
    '000000000000fff000001fffffffe000a012018000000',
    '0000000000001ffc00000fffffffe000300801c000000',
    '0000000000001fff000007cfffffc000006c1c0000000',
    '0000000000000fff80000001ffffc0000014180000000',
    '0000000000003fff80000001ffff8000001c788000000',
    '0000000000003fffc0000001ffff0000000e7ba000000',
    '0000000000007ffff0000003fffe0000000c761b00000',
    '0000000000003ffffe000001fffe000000073b77e2000',
    '0000000000007fffff000000fffc000000020103e5000',
    '0000000000003fffff8000007ffc00000001e004f8800',
    '0000000000003fffff800000fffc000000007fc1d0200',
    '0000000000001fffff8000007ffe0000000002800c100',
    '0000000000001ffffe0000007ffc20000000001e40000',
    '0000000000000ffffe0000007ffe30000000001e40000',
    '0000000000000ffffe000000fffc6000000000fc60040',
    '00000000000003fffe000000fffcf000000000ff70000',
    '00000000000001fffc000000fff0e000000001ffe0000',
    '00000000000001fffe0000007ff0e000000007fff8080',
    '00000000000001fffc0000007ff1c00000001ffff8040',
    '00000000000001fff00000003ff0c00000001ffffc000',
    '00000000000003ffc00000007fe0800000001ffffe000',
    '00000000000001ffc00000003fe0000000001ffffe000',
    '00000000000003ffc00000003fc0000000001ffffe000',
    '00000000000001ffc00000001fc0000000000ffffe000',
    '00000000000003ff800000001f80000000000ffffe000',
    '00000000000003ff000000001f80000000000f83fc000',
    '00000000000003fe000000000000000000000c03fc008',
    '00000000000003fc000000000000000000000000fc004',
    '00000000000007f8000000000000000000000000f8006',
    '00000000000003f000000000000000000000000000007',
    '00000000000007e00000000000000000000000003000c',
    '00000000000007e00000000000000000000000001800c',
    '00000000000007c000000000000000000000000010038',
    '00000000000007c000000000000000000000000000030',
    '0000000000000f8000000000000000000000000000060',
    '00000000000007c000000000000000000000000000000',
    '0000000000000f0000000000000000080000000000000',
    '000000000000070000000000000000000000000000000',
    '0000000000000f1800000000000000000000000000000',
    '000000000000078000000000000000000000000000000',
    '00000000000007c000000000000000000000000000000',
    '000000000000008000000000000000000000000000000',
  ],
  // Place in the drawing of a position in degrees.
  project(latitude, longitude) {
    const phi = (Math.max(-85, Math.min(85, latitude)) * Math.PI) / 180;
    const y = ((1.25 * Math.log(Math.tan(Math.PI / 4 + 0.4 * phi))) * 180) / Math.PI;
    return [longitude + 180, World.top - y];
  },
  // One path that draws every dot of land when stroked with round caps.
  path() {
    let d = '';
    World.rows.forEach((hex, r) => {
      const y = (r * World.rowHeight).toFixed(2);
      for (let c = 0; c < 180; c++) {
        const nibble = parseInt(hex[Math.floor(c / 4)], 16);
        if ((nibble >> (3 - (c % 4))) & 1) d += `M${c * World.step + (r % 2)} ${y}h0`;
      }
    });
    return d;
  },
  // Where the sun is at its highest, in degrees, at a time in Unix ms. Low-precision formulas of the Astronomical Almanac,
  // good to a hundredth of a degree.
  sun(unixMs) {
    const rad = Math.PI / 180, n = unixMs / 86400000 - 10957.5; // days after 2000-01-01 12:00 UTC
    const mean = 280.46 + 0.9856474 * n, anomaly = (357.528 + 0.9856003 * n) * rad;
    const along = (mean + 1.915 * Math.sin(anomaly) + 0.02 * Math.sin(2 * anomaly)) * rad, tilt = (23.439 - 4e-7 * n) * rad;
    const ascension = Math.atan2(Math.cos(tilt) * Math.sin(along), Math.cos(along)) / rad;
    const sidereal = (18.697374558 + 24.06570982441908 * n) * 15;
    return { latitude: Math.asin(Math.sin(tilt) * Math.sin(along)) / rad, longitude: ((((ascension - sidereal) % 360) + 540) % 360) - 180 };
  },
  // A path around the part of the map where the sun is lower than `altitude` degrees (0 or less). On each meridian that is
  // one interval; neighbouring intervals make an area.
  night(unixMs, altitude) {
    const rad = Math.PI / 180, sun = World.sun(unixMs), limit = Math.sin(altitude * rad), most = 84, step = 2;
    const sin = Math.sin(sun.latitude * rad), cos = Math.cos(sun.latitude * rad);
    const areas = [];
    let area = null;
    for (let longitude = -180; longitude <= 180; longitude += 2.5) {
      const across = cos * Math.cos((longitude - sun.longitude) * rad);
      const above = (latitude) => sin * Math.sin(latitude * rad) + across * Math.cos(latitude * rad) - limit;
      const edge = (a, b) => a + ((b - a) * above(a)) / (above(a) - above(b));
      let low = null, high = null;
      for (let latitude = -most; latitude <= most; latitude += step) {
        if (above(latitude) >= 0) continue;
        if (low === null) low = latitude > -most ? edge(latitude - step, latitude) : -90;
        high = latitude < most ? latitude + step : 90;
      }
      if (low === null) { area = null; continue; }
      if (high < 90 && above(high) >= 0) high = edge(high - step, high);
      if (!area) areas.push(area = []);
      area.push([World.project(high, longitude), World.project(low, longitude)]);
    }
    const point = (p) => `${p[0].toFixed(1)} ${p[1].toFixed(1)}`;
    return areas.filter((a) => a.length > 1).map((a) => `M${a.map((c) => point(c[0])).join('L')}L${a.map((c) => point(c[1])).reverse().join('L')}Z`).join('');
  },
  // Places for labels beside their points, so that they cover neither one another nor a point, inside the box
  // [left, top, right, bottom]. `labels`: [{x, y, width, height}]; gives the left upper corner of each.
  labels(labels, box, radius) {
    const taken = labels.map((l) => [l.x - radius, l.y - radius, l.x + radius, l.y + radius]);
    const overlap = (a, b) => Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0])) * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
    return labels.map((l) => {
      const off = radius * 1.15;
      const right = l.x + off, left = l.x - off - l.width, middle = l.x - l.width / 2;
      const below = l.y + radius * 0.3, level = l.y - l.height / 2, above = l.y - l.height - radius * 0.3;
      let best = null;
      for (const [x, y] of [[right, level], [right, below], [left, level], [left, below], [right, above], [left, above], [middle, l.y + off], [middle, l.y - off - l.height],
        [right, l.y + l.height], [left, l.y + l.height], [right, l.y - 2 * l.height], [left, l.y - 2 * l.height]]) {
        const at = [x, y, x + l.width, y + l.height];
        const outside = l.width * l.height - overlap(at, box);
        const cost = outside * 4 + taken.reduce((sum, t) => sum + overlap(at, t), 0);
        if (!best || cost < best.cost - 1e-6) best = { cost, at };
      }
      // Never outside, whatever it covers.
      const x = Math.max(box[0], Math.min(box[2] - l.width, best.at[0])), y = Math.max(box[1], Math.min(box[3] - l.height, best.at[1]));
      taken.push([x, y, x + l.width, y + l.height]);
      return [x, y];
    });
  },
};
