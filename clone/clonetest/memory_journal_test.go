package clonetest

import (
	"testing"

	"decant/clone"
	"decant/journal"
)

func TestMemoryJournal(t *testing.T) {
	TestJournal(t, func(_ *testing.T, sb journal.Superblock) (clone.Journal, func() clone.Journal) {
		m := &Machine{}
		return memoryJournal{m, sb.Geometry}, func() clone.Journal {
			m = m.Restart()
			return memoryJournal{m, sb.Geometry}
		}
	})
}
