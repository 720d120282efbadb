package main

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"

	"decant/service"
	"decant/units"
)

// screenSize is that of the terminal.
type screenSize struct{ columns, rows int }

const (
	watchBar       = 16 // cells of a bar in the list
	watchMapRows   = 6  // most, of the map
	watchDetail    = 6  // lines about the selected one
	watchLeastRows = 6
)

// watchView draws a model as lines of text, none wider than the screen as long as its
// characters take one column each.
type watchView struct {
	unicode bool
	arrow   string
}

const (
	reverseVideo = "\x1b[7m"
	boldVideo    = "\x1b[1m"
	plainVideo   = "\x1b[0m"
)

// screenLine is a line and how it is shown.
type screenLine struct {
	text  string
	video string // an escape; empty: as it is
}

// lines are those of the whole screen, from the top.
func (v watchView) lines(m *watchModel, size screenSize) []screenLine {
	rows := max(watchLeastRows, size.rows)
	lines := []screenLine{{v.title(m), reverseVideo}}
	foot := screenLine{v.foot(m), reverseVideo}
	item, isChosen := m.chosen()
	var detail []screenLine
	if isChosen && rows >= watchLeastRows+watchDetail {
		detail = v.detail(m, item, size, rows)
	}
	room := rows - len(lines) - len(detail) - 1 - 1
	lines = append(lines, v.list(m, max(1, room))...)
	for len(lines) < rows-len(detail)-1 {
		lines = append(lines, screenLine{})
	}
	lines = append(append(lines, detail...), foot)
	for i := range lines {
		lines[i].text = clipColumns(lines[i].text, size.columns)
	}
	return lines[:min(len(lines), max(1, size.rows))]
}

func (v watchView) title(m *watchModel) string {
	counts := map[service.State]int{}
	for _, item := range m.items {
		counts[item.State]++
	}
	text := fmt.Sprintf("decant: %d migrations", len(m.items))
	for _, state := range []service.State{service.StateRunning, service.StateQueued, service.StatePaused, service.StateStopped, service.StateFailed} {
		if counts[state] > 0 {
			text += fmt.Sprintf(", %d %s", counts[state], state)
		}
	}
	if m.link != "" {
		text += " - " + escapeControls(m.link)
	}
	return pad(text, 4096)
}

func (v watchView) foot(m *watchModel) string {
	keys := "up/down select  p pause  r resume  q quit"
	if m.message != "" {
		keys = escapeControls(m.message) + "  |  " + keys
	}
	return pad(keys, 4096)
}

// list is as many migrations as there is room for, with the selected one among them.
func (v watchView) list(m *watchModel, room int) []screenLine {
	switch {
	case !m.loaded:
		return []screenLine{{text: "  ..."}}
	case len(m.items) == 0:
		return []screenLine{{text: "  there are no migrations"}}
	}
	lines := []screenLine{{fmt.Sprintf("  %-8s  %-9s  %*s  %4s  %12s  %9s  %s", "ID", "STATE", watchBar+2, "", "", "RATE", "LEFT", "SOURCE "+v.arrow+" DESTINATION"), boldVideo}}
	room = max(1, room-1)
	first := max(0, min(m.index(m.selected)-room/2, len(m.items)-room))
	for _, item := range m.items[first:min(len(m.items), first+room)] {
		line := screenLine{text: v.item(item)}
		if item.ID == m.selected {
			line = screenLine{"> " + line.text[2:], boldVideo}
		}
		lines = append(lines, line)
	}
	return lines
}

func (v watchView) item(w watched) string {
	rate, left := "", ""
	if e := w.event; e != nil && w.isMoving() {
		rate = units.FormatBytes(e.RateBytesPerSecond) + "/s"
		if e.ETASeconds != nil {
			left = formatSeconds(*e.ETASeconds)
		}
	}
	share := w.progress()
	return fmt.Sprintf("  %-8s  %-9s  %s  %3d%%  %12s  %9s  %s", escapeControls(w.ID), escapeControls(string(w.State)), v.bar(share),
		percent(share, 1), rate, left, printableName(w.Source)+" "+v.arrow+" "+printableName(w.Destination))
}

func (v watchView) bar(share float64) string {
	full, empty := "#", "-"
	if v.unicode {
		full, empty = "█", "·"
	}
	n := min(watchBar, max(0, int(share*watchBar)))
	return "[" + strings.Repeat(full, n) + strings.Repeat(empty, watchBar-n) + "]"
}

// detail is what is worth knowing of the selected migration, with its map if it fits.
func (v watchView) detail(m *watchModel, w watched, size screenSize, rows int) []screenLine {
	copied := exactBytes(w.BytesCopied) + " copied"
	if e := w.event; e != nil && e.BytesData > 0 {
		copied = amounts(*e) + " copied"
		if e.BytesDiscarded > 0 {
			copied += ", " + freed(*e)
		}
		if e.BytesVerified > 0 {
			copied += ", " + units.FormatBytes(e.BytesVerified) + " verified"
		}
	}
	lines := []screenLine{
		{},
		{text: "  " + escapeControls(w.ID) + ": " + printableName(w.Source) + " " + v.arrow + " " + printableName(w.Destination), video: boldVideo},
		{text: fmt.Sprintf("  %s, %s of %s hydrated, transaction %d", describeStatus(w.Status),
			regionShare(w.Hydrated, w.Regions), units.FormatBytes(w.BytesTotal), w.Transaction)},
		{text: fmt.Sprintf("  %s, at most %s of extra space", copied, units.FormatBytes(w.PeakExtraBytes))},
	}
	reason := w.Reason
	if w.Problem != "" {
		reason = w.Problem
	}
	if reason != "" {
		lines = append(lines, screenLine{text: "  " + escapeControls(reason)})
	}
	if w.Hint != "" {
		lines = append(lines, screenLine{text: "  hint: " + escapeControls(w.Hint)})
	}
	if layout, room := v.mapLayout(size, rows); room > 0 && m.cellsOf == w.ID && len(m.cells) > 0 {
		var b bytes.Buffer
		layout.draw(&b, m.cells, w.BytesTotal)
		for line := range strings.Lines(b.String()) {
			lines = append(lines, screenLine{text: strings.TrimSuffix(line, "\n")})
		}
	}
	return lines
}

// mapLayout is the place for a map below a list, none on a low screen.
func (v watchView) mapLayout(size screenSize, rows int) (layout mapLayout, mapRows int) {
	mapRows = min(watchMapRows, rows-watchLeastRows-watchDetail-4)
	return mapLayout{width: size.columns, unicode: v.unicode}, max(0, mapRows)
}

// cells is how many cells a map has on this screen.
func (v watchView) cells(size screenSize) int {
	layout, mapRows := v.mapLayout(size, max(watchLeastRows, size.rows))
	return layout.cellsInRow() * mapRows
}

func pad(text string, columns int) string {
	return text + strings.Repeat(" ", max(0, columns-utf8.RuneCountInString(text)))
}

// clipColumns cuts a line that would not fit.
func clipColumns(text string, columns int) string {
	for i := range text {
		if columns == 0 {
			return text[:i]
		}
		columns--
	}
	return text
}

// frame is the escapes that put lines on the screen, in one piece, over what was there.
func frame(lines []screenLine) []byte {
	var b bytes.Buffer
	b.WriteString("\x1b[H")
	for i, line := range lines {
		if i > 0 {
			b.WriteString("\r\n")
		}
		if line.video != "" {
			b.WriteString(line.video + line.text + plainVideo)
		} else {
			b.WriteString(line.text)
		}
		b.WriteString("\x1b[K")
	}
	b.WriteString("\x1b[J")
	return b.Bytes()
}
