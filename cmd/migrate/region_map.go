package main

import (
	"bytes"
	"fmt"
	"strings"

	"decant/service"
	"decant/units"
)

const (
	mapRows        = 8
	mapLabelWidth  = 10 // the offset at which a row begins, and a space
	mapFewestCells = 8  // in a row; narrower terminals wrap
)

// mapSymbol is how a state of a part of the device is drawn.
type mapSymbol struct{ state, unicode, ascii string }

// mapSymbols are in the order of the legend.
var mapSymbols = []mapSymbol{
	{"unhydrated", "·", "."},
	{"partial", "▒", "+"},
	{"dirty", "▚", "%"},
	{"hydrated", "▓", "#"},
	{"discarded", "░", "-"},
	{"bad", "!", "!"},
}

// mapLayout is the place that there is for a region map.
type mapLayout struct {
	width   int // of the terminal
	unicode bool
}

func (p *program) mapLayout() mapLayout {
	width := p.stdoutColumns()
	if width == 0 {
		width = defaultColumns
	}
	return mapLayout{width: width, unicode: p.unicode}
}

func (l mapLayout) cellsInRow() int { return max(mapFewestCells, l.width-mapLabelWidth) }

// cells is how many cells fill the map.
func (l mapLayout) cells() int { return l.cellsInRow() * mapRows }

// draw draws a device of so many bytes, which the cells share evenly, and a legend.
func (l mapLayout) draw(to *bytes.Buffer, cells []service.Cell, deviceBytes int64) {
	row := l.cellsInRow()
	for first := 0; first < len(cells); first += row {
		offset := int64(float64(deviceBytes) * float64(first) / float64(len(cells)))
		var line strings.Builder
		for _, cell := range cells[first:min(first+row, len(cells))] {
			line.WriteString(l.symbol(cell.State))
		}
		fmt.Fprintf(to, "%*s %s\n", mapLabelWidth-1, units.FormatBytes(offset), line.String())
	}
	l.drawLegend(to)
}

func (l mapLayout) drawLegend(to *bytes.Buffer) {
	used := 0
	for _, s := range mapSymbols {
		entry := "  " + l.symbol(s.state) + " " + s.state
		columns := len("  x ") + len(s.state)
		if used > 0 && used+columns > l.width {
			fmt.Fprintln(to)
			used = 0
		}
		fmt.Fprint(to, entry)
		used += columns
	}
	fmt.Fprintln(to)
}

func (l mapLayout) symbol(state string) string {
	for _, s := range mapSymbols {
		if s.state == state && l.unicode {
			return s.unicode
		}
		if s.state == state {
			return s.ascii
		}
	}
	return "?"
}
