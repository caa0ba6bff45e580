// Package roads finds shortest routes in a road map.
package roads

import (
	"container/heap"
	"errors"
	"fmt"
	"math"
	"sort"
)

// ErrUnreachable is returned when no route leads from the start to the goal.
var ErrUnreachable = errors.New("no route")

// Road leads to a place and takes some minutes.
type Road struct {
	To      string
	Minutes float64
}

// Map has the roads that start at each place.
type Map struct {
	roads map[string][]Road
	where map[string][2]float64 // kilometres east and north of some origin
}

// New returns an empty map.
func New() *Map {
	return &Map{roads: make(map[string][]Road), where: make(map[string][2]float64)}
}

// Place adds a place with its coordinates, or moves it.
func (m *Map) Place(name string, east, north float64) {
	m.where[name] = [2]float64{east, north}
}

// Connect adds a road in both directions.
func (m *Map) Connect(a, b string, minutes float64) error {
	if minutes < 0 || math.IsNaN(minutes) {
		return fmt.Errorf("road from %s to %s takes %v minutes", a, b, minutes)
	}
	for _, name := range []string{a, b} {
		if _, ok := m.where[name]; !ok {
			return fmt.Errorf("unknown place: %s", name)
		}
	}
	m.roads[a] = append(m.roads[a], Road{To: b, Minutes: minutes})
	m.roads[b] = append(m.roads[b], Road{To: a, Minutes: minutes})
	return nil
}

// Route is a list of places and how long it takes to go from the first to the last.
type Route struct {
	Places  []string
	Minutes float64
}

// topSpeed bounds how fast anyone can get anywhere, in kilometres per minute. The bound is what
// makes the search go towards the goal; a bound that is too high costs time, one too low, the answer.
const topSpeed = 130.0 / 60.0

// Shortest returns the quickest route, by the algorithm A*.
func (m *Map) Shortest(start, goal string) (Route, error) {
	if _, ok := m.where[start]; !ok {
		return Route{}, fmt.Errorf("unknown place: %s", start)
	}
	if _, ok := m.where[goal]; !ok {
		return Route{}, fmt.Errorf("unknown place: %s", goal)
	}
	best := map[string]float64{start: 0}
	from := map[string]string{}
	done := map[string]bool{}
	open := &queue{{place: start, bound: m.atLeast(start, goal)}}

	for open.Len() > 0 {
		here := heap.Pop(open).(entry).place
		if here == goal {
			return Route{Places: trace(from, goal), Minutes: best[goal]}, nil
		}
		if done[here] {
			continue // an older, longer entry for the same place
		}
		done[here] = true
		for _, road := range m.roads[here] {
			minutes := best[here] + road.Minutes
			if known, ok := best[road.To]; ok && known <= minutes {
				continue
			}
			best[road.To] = minutes
			from[road.To] = here
			heap.Push(open, entry{place: road.To, bound: minutes + m.atLeast(road.To, goal)})
		}
	}
	return Route{}, fmt.Errorf("from %s to %s: %w", start, goal, ErrUnreachable)
}

// Within lists the places that can be reached in some minutes, nearest first.
func (m *Map) Within(start string, minutes float64) []string {
	best := map[string]float64{start: 0}
	open := &queue{{place: start}}
	var found []string
	done := map[string]bool{}
	for open.Len() > 0 {
		here := heap.Pop(open).(entry)
		if here.bound > minutes {
			break
		}
		if done[here.place] {
			continue
		}
		done[here.place] = true
		found = append(found, here.place)
		for _, road := range m.roads[here.place] {
			next := here.bound + road.Minutes
			if known, ok := best[road.To]; !ok || next < known {
				best[road.To] = next
				heap.Push(open, entry{place: road.To, bound: next})
			}
		}
	}
	sort.SliceStable(found, func(i, j int) bool { return best[found[i]] < best[found[j]] })
	return found
}

func (m *Map) atLeast(a, b string) float64 {
	p, q := m.where[a], m.where[b]
	return math.Hypot(p[0]-q[0], p[1]-q[1]) / topSpeed
}

func trace(from map[string]string, goal string) []string {
	places := []string{goal}
	for at, ok := from[goal]; ok; at, ok = from[at] {
		places = append(places, at)
	}
	for i, j := 0, len(places)-1; i < j; i, j = i+1, j-1 {
		places[i], places[j] = places[j], places[i]
	}
	return places
}

type entry struct {
	place string
	bound float64
}

type queue []entry

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].bound < q[j].bound }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(item any)     { *q = append(*q, item.(entry)) }
func (q *queue) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}
