// The report's data: the JSON in the page and its packed arrays.

// Give dicts of the data no prototype, so that "constructor" and "__proto__" are ordinary names.
function bare(_name, value) {
  return value && typeof value === "object" && !Array.isArray(value)
    ? Object.assign(Object.create(null), value)
    : value;
}

export const report = JSON.parse(document.getElementById("report-data").textContent, bare);

const unpacked = new WeakMap();

// The values of a packed array, in the order of its shape: see crate_mm/extras/report/pack.py.
export function unpack(packed) {
  if (!unpacked.has(packed)) unpacked.set(packed, decode(packed));
  return unpacked.get(packed);
}

// The bytes of a text, base64 of gzip.
export async function gunzip(text) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function decode(packed) {
  const buffer = await gunzip(packed.gzip);
  const whole = packed.bits === 8 ? new Uint8Array(buffer) : words(buffer);
  const most = packed.bits === 8 ? 255 : 65535;
  const group = whole.length / packed.scale.length;
  const shares = Float64Array.from({ length: most + 1 }, (_, q) => (q / most) ** packed.power);
  const values = new Float64Array(whole.length);
  packed.scale.forEach((scale, g) => {
    for (let i = g * group; i < (g + 1) * group; i++) values[i] = shares[whole[i]] * scale;
  });
  return values;
}

// Little-endian words on any machine.
function words(buffer) {
  const view = new DataView(buffer);
  const values = new Uint16Array(buffer.byteLength / 2);
  for (let i = 0; i < values.length; i++) values[i] = view.getUint16(2 * i, true);
  return values;
}

// A subarray along the first dimensions of an array: part(values, [16, 6, 5, 5], 3, 2) is values[3][2].
export function part(values, shape, ...places) {
  const size = shape.slice(places.length).reduce((a, b) => a * b, 1);
  const at = places.reduce((sum, place, i) => sum * shape[i] + place, 0);
  return values.subarray(at * size, (at + 1) * size);
}

// The largest number of heads in a layer of a model.
export function headsOf(model) {
  if (model.running) return Math.max(...model.running.heads);
  const shapes = model.layers.map((l) => l.looks.attention?.shape[1] ?? l.subspaces?.heads ?? 1);
  return Math.max(...shapes);
}

export function className(label) {
  return report.classes?.[label] ?? `class ${label}`;
}
