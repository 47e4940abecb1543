// Photos instead of drawings: files that are dropped, folders whose sub-folders are classes, and the camera.

import { square } from "./ink.js";

const LIVE = 400; // milliseconds between two frames of the camera

// Call `take(files)` with the files that are dropped on a node, folders with everything in them: [[path, file], ..].
export function dropTarget(node, take) {
  let depth = 0; // a drag enters the node's children too
  const mark = (change) => {
    depth = change ? depth + change : 0;
    node.classList.toggle("dropping", depth > 0);
  };
  node.addEventListener("dragover", (event) => event.preventDefault());
  node.addEventListener("dragenter", () => mark(1));
  node.addEventListener("dragleave", () => mark(-1));
  node.addEventListener("drop", async (event) => {
    event.preventDefault();
    event.stopPropagation();
    mark(0);
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    const files = entries.length ? (await Promise.all(entries.map(filesOf))).flat() : [...event.dataTransfer.files].map((f) => [f.name, f]);
    take(files);
  });
}

async function filesOf(entry) {
  if (entry.isFile) return [[entry.fullPath, await new Promise((done, failed) => entry.file(done, failed))]];
  const reader = entry.createReader();
  const inside = [];
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed)); // a hundred at a time
    if (!some.length) break;
    inside.push(...some);
  }
  return (await Promise.all(inside.map(filesOf))).flat();
}

// Image files by the folder that they lie in: [[path, file], ..] -> [[name of the folder, its files], ..], by name.
export function byFolder(files, most) {
  const classes = new Map();
  for (const [path, file] of files.filter(([, f]) => f.type.startsWith("image/"))) {
    const name = path.split("/").filter(Boolean).at(-2);
    if (name) classes.set(name, [...(classes.get(name) ?? []), file]);
  }
  if (!classes.size) throw new Error("There is no folder of images in it: give one that holds a folder for every class.");
  if (classes.size > most) throw new Error(`The page holds ${most} classes, and there are ${classes.size}: use mcdi generate.`);
  return [...classes].sort(([a], [b]) => a.localeCompare(b));
}

// The camera of the device and its button: frame() is the square in its middle; show(picture) is called again and again while it
// is on, and the page's body has the class "filming".
export class Camera {
  constructor(button, show) {
    this.button = button;
    this.show = show;
    this.video = document.createElement("video");
    this.video.muted = this.video.playsInline = true;
    button.hidden = !navigator.mediaDevices?.getUserMedia;
  }

  async toggle() {
    if (this.video.srcObject) return this.stop();
    try {
      this.video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch (error) {
      throw new Error(`The camera cannot be used: ${error.message}.`);
    }
    await this.video.play();
    this.timer = setInterval(() => this.show(this.frame()), LIVE);
    this.tell(true);
    this.show(this.frame());
  }

  stop() {
    clearInterval(this.timer);
    this.video.srcObject?.getTracks().forEach((track) => track.stop());
    this.video.srcObject = null;
    this.tell(false);
  }

  tell(on) {
    document.body.classList.toggle("filming", on);
    this.button.setAttribute("aria-pressed", on);
  }

  frame() {
    return square(this.video, this.video.videoWidth, this.video.videoHeight, true);
  }
}
