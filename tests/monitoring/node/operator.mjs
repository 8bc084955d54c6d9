// Validates the Prometheus operator's objects, as JSON on the standard input, by the published schemas of its CRDs.
// The first argument is the folder of node_modules. Prints one JSON list of complaints.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { join } from "node:path";

const [packages] = process.argv.slice(2);
const complaints = [];
for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  const path = join(packages, "@kubernetes-models/prometheus-operator", object.apiVersion, `${object.kind}.js`);
  const { [object.kind]: Model } = await import(pathToFileURL(path).href);
  try {
    new Model(object).validate();
  } catch (fault) {
    complaints.push(`${object.kind}: ${fault.message}`);
  }
}
console.log(JSON.stringify(complaints));
