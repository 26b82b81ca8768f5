// What a JSON schema, as pydantic writes it, says of a field.

/** Follow a reference; what stands beside it, such as a description, wins. */
export function resolve(root, schema) {
  if (!schema.$ref) return schema;
  const [, ...path] = schema.$ref.split("/");
  const { $ref, ...beside } = schema;
  return { ...resolve(root, path.reduce((node, key) => node[key], root)), ...beside };
}

const isNull = (schema) => schema.type === "null";
const isObject = (root, schema) => resolve(root, schema).type === "object";

/**
 * Return what kind of field a schema asks for, and its parts.
 *
 * section: an object's properties. tagged: one of several objects, chosen by a property.
 * choice: one of several kinds, null among them perhaps. list: objects, any number. numbers: plain
 * values in a row. choose: one of given values, true and false among them where null is a third. boolean, integer, number, string: as they say;
 * `isNullable` where nothing is a value too.
 */
export function kindOf(root, given) {
  const schema = resolve(root, given);
  if (schema.oneOf && schema.discriminator) {
    const { propertyName, mapping } = schema.discriminator;
    const branches = Object.fromEntries(Object.entries(mapping).map(([tag, ref]) => [tag, { $ref: ref }]));
    return { kind: "tagged", schema, tag: propertyName, branches };
  }
  if (schema.anyOf) return ofAny(root, schema);
  if (schema.const !== undefined) return { kind: "choose", schema, values: [schema.const] };
  if (schema.enum) return { kind: "choose", schema, values: schema.enum };
  if (schema.type === "object") return { kind: "section", schema };
  if (schema.type === "array") {
    const isList = schema.items && isObject(root, schema.items);
    return { kind: isList ? "list" : "numbers", schema };
  }
  return { kind: schema.type, schema };
}

function ofAny(root, schema) {
  const { anyOf, ...beside } = schema;
  const options = anyOf.filter((option) => !isNull(option));
  const isNullable = options.length < anyOf.length;
  if (options.length === 1 && !isObject(root, options[0])) {
    const inner = kindOf(root, { ...resolve(root, options[0]), ...beside });
    if (isNullable && inner.kind === "boolean") return { ...inner, kind: "choose", values: [true, false], isNullable };
    return { ...inner, isNullable };
  }
  const branches = options.map((option) => ({ label: labelOf(root, option), schema: option }));
  if (isNullable) branches.unshift({ label: "null", schema: null });
  return { kind: "choice", schema, branches };
}

/** `FilterConfig` is `filter`, an array of it `list: filter`. */
function labelOf(root, option) {
  const schema = resolve(root, option);
  if (schema.type === "array") return `list: ${labelOf(root, schema.items)}`;
  const name = (schema.title ?? schema.type).replace(/Config$/, "");
  return name.replace(/(?<=[a-z])(?=[A-Z])/g, " ").toLowerCase();
}

/** Return which branch of a choice a value is of. */
export function branchOf(root, branches, value) {
  const type = value === null ? null : Array.isArray(value) ? "array" : typeof value;
  const found = branches.findIndex(({ schema }) =>
    type === null ? schema === null : schema !== null && resolve(root, schema).type === type);
  return Math.max(0, found);
}

/** Return what of a tree is not as in the defaults; undefined if nothing is. A tag comes along. */
export function changes(tree, defaults) {
  if (!isMapping(tree) || !isMapping(defaults)) {
    return JSON.stringify(tree) === JSON.stringify(defaults) ? undefined : tree;
  }
  if (tree.name !== defaults.name && "name" in defaults) return tree;
  const found = {};
  for (const [key, value] of Object.entries(tree)) {
    const change = key in defaults ? changes(value, defaults[key]) : value;
    if (change !== undefined) found[key] = change;
  }
  if (!Object.keys(found).length) return undefined;
  return "name" in defaults ? { name: tree.name, ...found } : found;
}

const isMapping = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/**
 * Return which of a form's fields a message of the API is about, null if none.
 *
 * Rules name keys by their whole path, `optimizer.lr must be greater than 0`.
 *
 * @param {string} text
 * @param {function(string): boolean} isField
 */
export function fieldOf(text, isField) {
  const quoted = [...text.matchAll(/`([^`]+)`/g)].map((match) => match[1]);
  const named = text.match(/[a-z_][a-z0-9_]*(?:\.[a-z0-9_]+)*/g) ?? [];
  const paths = [...quoted, ...named];
  const exact = paths.find((path) => isField(path));
  if (exact) return exact;
  for (const path of paths) {
    const parts = path.split(".");
    while (parts.length > 1) {
      parts.pop();
      if (isField(parts.join("."))) return parts.join(".");
    }
  }
  return null;
}
