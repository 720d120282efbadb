// Package web is the browser page over the API of the background service.
//
// The page is plain: the files under static are what a browser gets, without a build
// step, and nothing is loaded from anywhere else. It is itself a client of the API and
// knows nothing that the API does not tell. The Go side of the package serves the files
// and forbids everything that the page does not need.
//
// What is shown comes from outside: names of files and volumes, messages of kernels.
// The page puts it into text nodes only, with control characters made visible, and the
// policy that it is served with (no inline script or style, no HTML from strings) holds
// where that is forgotten.
//
// Modules under static, from the ground up:
//
//	format.js, html.js   numbers, times and names as text; elements
//	api.js, stream.js    requests; the stream of events, and finding it again
//	history.js           samples of a migration over time, for the charts
//	store.js             all that is known; components redraw when it changes
//	map.js, chart.js     what is drawn on canvas
//	dialog.js, ...       components: one file each
//	main.js              puts them together
package web
